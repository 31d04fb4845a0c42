"""`stoq bench throughput|handshake|latency|packets|engine|idle|congestion|window|ct|ca`: our figures, each
beside its yardstick in the same run.

      a trial ──▶ ours ──▶ yardstick ──▶ further contenders ──▶ the next trial …

Contenders take turns, so that a machine whose speed wanders slows all of them alike, and the ratio is
formed within a trial. Reported are every trial, the medians, the ratio (median of the trials' ratios) and
the environment.

`processes` runs and ends programs, `yardsticks` the C ones of csrc/bench, `environment` describes the
machine, `report` makes figures of trials; `throughput`, `handshake`, `latency` and
`packets` (AF_XDP, also under the first and the third), `engine`, `idle`, `window` and `congestion`
(simulated, the last against the formulas of `models`) are the commands' work, `handshaker` the program
that `handshake` measures, `commands` the command line.

`ct` and `ca` measure TrustChain's log and authority: `trust_ends` runs a server (`stoq ct serve`,
`trust_server`) and its client (`trust_load`), `ct_growth` and `ca_programs` are measured themselves,
`ct_chains` makes precertificates, `trust_figures` has what they share.
"""
