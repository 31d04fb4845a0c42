"""One contract on one chain: typed questions and signed transactions, no state of its own.

    Chain.check()       the chain has the id it should, and the address has our code
    Chain.newest() …    what the contract says in the newest block
    Chain.final_block() the newest block that no reorganisation can take back
    Chain.sign()        a transaction as bytes: EIP-1559 (type 2), or legacy where blocks have no base fee
    Chain.send()        hand those bytes to the node

Final is what the chain itself calls so (the block tag `finalized`), or, where it has no such thing, what has
`confirmations` blocks upon it. Once a node has known the tag its absence is a fault and not another kind of chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from control.ctlog.anchor.contract import contract, unpack
from control.ctlog.anchor.interface import (
    MAX_UINT64,
    AnchoredHead,
    AnchorError,
    AnchorRefused,
    AnchorUnavailable,
    check_log_id,
)
from control.ctlog.anchor.libraries import DecodingError, Web3, decode
from control.ctlog.anchor.rpc import Node, NodeError, Rpc
from control.ctlog.anchor.wire import data, fields, quantity
from dataplane.errors import ConfigError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

GWEI = 10**9
MAX_GAS = 3_000_000  # Deployment takes some 650,000, the first anchor of a log some 95,000, another 78,000.
GAS_MARGIN = 5  # A fifth more than estimated: the first block to take it may cost more than the one it was tried on.
REVERT = bytes.fromhex("08c379a0")  # Error(string), in which a contract says why it refuses.


@dataclass(frozen=True, slots=True)
class ChainConfig:
    """Which contract on which chain. `fee_cap_wei` bounds what is paid for a unit of gas, so a transaction costs at
    most that times its gas. `confirmations` counts where the chain has no `finalized` tag, or where `use_finalized`
    is False; with True a chain without it is an error."""

    node: Node
    chain_id: int
    contract: str | None = None  # 0x and 40 digits; None: to be deployed.
    fee_cap_wei: int = 200 * GWEI
    confirmations: int = 64
    use_finalized: bool | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if self.chain_id < 1:
            raise ConfigError(f"{self.chain_id} is no chain's id")
        if self.contract is not None and not Web3.is_address(self.contract):
            raise ConfigError(f"{self.contract!r} is no contract's address: 0x and 40 hexadecimal digits")
        if self.fee_cap_wei < 1 or self.confirmations < 1:
            raise ConfigError("the fee cap and the confirmations must be at least 1")


@dataclass(frozen=True, slots=True)
class Fees:
    """Wei for a unit of gas; `priority` None: a chain without base fees (legacy transactions)."""

    most: int
    priority: int | None


class OverFeeCap(AnchorError):
    """The chain asks for more than the cap."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A transaction ready to be sent."""

    raw: bytes
    hash: bytes
    nonce: int
    fees: Fees


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a transaction in the newest chain."""

    block_number: int
    block_hash: bytes
    succeeded: bool
    gas_used: int
    contract: str | None


class Chain:
    """Close it when done."""

    def __init__(self, config: ChainConfig) -> None:
        self.config = config
        self._rpc = Rpc(config.node)
        self._contract = Web3().eth.contract(abi=contract().abi)
        self._checked = False
        self.finalized_seen = False  # The chain has the tag; kept by who keeps state.

    @property
    def place(self) -> str:
        """For people; no secret."""
        return f"chain {self.config.chain_id} by {self.config.node.place}, contract {self.config.contract or '(none)'}"

    @property
    def finality(self) -> str:
        """How final is told."""
        return "finalized tag" if self.finalized_seen else f"{self.config.confirmations} confirmations"

    @property
    def address(self) -> str:
        """The contract's address with its checksum. Raises ConfigError when none is configured."""
        if self.config.contract is None:
            raise ConfigError("no contract is configured: deploy one, and name its address")
        return str(Web3.to_checksum_address(self.config.contract))

    # ---- questions ----

    async def check(self) -> None:
        """See that this is the chain and the contract that were meant; asked once. Raises ConfigError for another
        chain or other code, AnchorUnavailable."""
        if self._checked:
            return
        await self.check_chain()
        code = data(await self._rpc.ask("eth_getCode", self.address, "latest"))
        if code != contract().runtime:
            what = "another contract" if code else "no contract"
            raise ConfigError(f"there is {what} at {self.address} on chain {self.config.chain_id}: name ours")
        self._checked = True

    async def check_chain(self) -> None:
        """Only the chain's id. Raises ConfigError, AnchorUnavailable."""
        found = quantity(await self._rpc.ask("eth_chainId"))
        if found != self.config.chain_id:
            raise ConfigError(
                f"{self.config.node.place} is a node of chain {found}, not of chain {self.config.chain_id}: "
                f"name another node or chain"
            )

    async def newest(self, log_id: bytes) -> AnchoredHead | None:
        """The log's newest head in the newest block, final or not."""
        return await self._head(log_id, "newest_head", [log_id])

    async def newest_up_to_block(self, log_id: bytes, number: int) -> AnchoredHead | None:
        """The log's newest head that a block up to this one took."""
        return await self._head(log_id, "newest_by_block", [log_id, number])

    async def newest_up_to_size(self, log_id: bytes, size: int) -> AnchoredHead | None:
        """The log's newest head of at most `size` entries."""
        return await self._head(log_id, "newest_by_size", [log_id, min(size, MAX_UINT64)])

    async def newest_final(self, log_id: bytes) -> AnchoredHead | None:
        """The log's newest final head. Raises AnchorUnavailable."""
        # In this order: what the newest state holds of final blocks stays, whatever happens between the two.
        number = await self.final_block()
        return None if number is None else await self.newest_up_to_block(log_id, number)

    async def _head(self, log_id: bytes, function: str, arguments: list[object]) -> AnchoredHead | None:
        check_log_id(log_id)
        await self.check()
        answer = await self._call(function, arguments)
        if len(answer) != 64:
            raise AnchorUnavailable(f"the chain's node answers {function} with {len(answer)} bytes")
        word = unpack(int.from_bytes(answer[32:], "big"))
        if word is None:
            return None
        return AnchoredHead(log_id, word.size, answer[:32], word.timestamp, word.index, word.block_number)

    async def final_block(self) -> int | None:
        """The number of the newest final block; None: the chain is too young to have one."""
        if self.config.use_finalized is not False:
            try:
                block = await self._rpc.ask("eth_getBlockByNumber", "finalized", False)
            except NodeError:
                block = None
            if block is not None:
                self.finalized_seen = True
                return quantity(fields(block, "a block").get("number"), 64)
            if self.finalized_seen or self.config.use_finalized:
                raise AnchorUnavailable(
                    f"{self.config.node.place} knows no finalized block (now): a node that synchronises will"
                )
        newest = quantity(await self._rpc.ask("eth_blockNumber"), 64)
        return newest - self.config.confirmations if newest >= self.config.confirmations else None

    async def publisher(self, log_id: bytes) -> str:
        """The account that publishes for a log; the zero address: nobody does."""
        await self.check()
        answer = await self._call("publishers", [check_log_id(log_id)])
        return str(Web3.to_checksum_address(answer[-20:]))

    async def next_nonce(self, account: str) -> int:
        """Transactions of an account in the newest block: the first number not used yet."""
        return quantity(await self._rpc.ask("eth_getTransactionCount", account, "latest"), 64)

    async def knows(self, transaction: bytes) -> bool:
        """Does the node have this transaction, in a block or waiting?"""
        return await self._rpc.ask("eth_getTransactionByHash", _hex(transaction)) is not None

    async def receipt(self, transaction: bytes) -> Receipt | None:
        """A transaction's receipt; None: it is in no block."""
        answer = await self._rpc.ask("eth_getTransactionReceipt", _hex(transaction))
        if answer is None:
            return None
        found = fields(answer, "a receipt")
        made = found.get("contractAddress")
        return Receipt(
            quantity(found.get("blockNumber"), 64),
            data(found.get("blockHash"), 32),
            quantity(found.get("status")) == 1,
            quantity(found.get("gasUsed"), 64),
            None if made is None else str(Web3.to_checksum_address(data(made, 20))),
        )

    async def block(self, which: int | str) -> dict[str, object] | None:
        """A block's fields as the node gives them; None: there is no such block."""
        name = which if isinstance(which, str) else hex(which)
        answer = await self._rpc.ask("eth_getBlockByNumber", name, False)
        return None if answer is None else fields(answer, "a block")

    async def account_proof(self, slots: list[int], block_number: int) -> dict[str, object]:
        """eth_getProof of the contract's account and storage (EIP-1186), as the node gives it."""
        answer = await self._rpc.ask("eth_getProof", self.address, [f"0x{s:064x}" for s in slots], hex(block_number))
        return fields(answer, "a proof")

    # ---- transactions ----

    async def fees(self, above: Fees | None = None) -> Fees:
        """What to offer now, within the cap; `above`: at least an eighth more than this, as nodes ask of a
        replacement. Raises OverFeeCap."""
        block = await self.block("latest")
        if block is None:
            raise AnchorUnavailable(f"{self.config.node.place} knows no newest block")
        cap = self.config.fee_cap_wei
        if block.get("baseFeePerGas") is None:
            price = quantity(await self._rpc.ask("eth_gasPrice"))
            least = 0 if above is None else above.most + above.most // 8 + 1
            if max(price, least) > cap:
                raise OverFeeCap(f"gas costs {_gwei(max(price, least))} now, more than the cap of {_gwei(cap)}")
            return Fees(max(price, least), None)
        base = quantity(block["baseFeePerGas"])
        try:
            priority = quantity(await self._rpc.ask("eth_maxPriorityFeePerGas"))
        except NodeError:
            priority = GWEI  # Not every node has the call; this has long been a usual tip.
        # Twice the base fee stays enough for at least five full blocks in a row.
        most, tip = 2 * base + priority, priority
        if above is not None:
            most = max(most, above.most + above.most // 8 + 1)
            tip = max(tip, (above.priority or 0) + (above.priority or 0) // 8 + 1)
            if above.most + above.most // 8 + 1 > cap:
                raise OverFeeCap(f"a replacement would have to offer more than the cap of {_gwei(cap)}")
        if base + 1 > cap:
            raise OverFeeCap(f"the base fee is {_gwei(base)} now, more than the cap of {_gwei(cap)}")
        most = min(most, cap)
        return Fees(most, min(tip, most))

    async def sign(self, account: LocalAccount, to: str | None, call: bytes, nonce: int, fees: Fees) -> Signed:
        """A signed transaction. It is tried on the newest state first. Raises AnchorRefused when the contract would
        refuse it, ConfigError when it needs more gas than any of ours."""
        tried: dict[str, str] = {"from": account.address, "data": _hex(call)}
        if to is not None:
            tried["to"] = to
        try:
            needed = quantity(await self._rpc.ask("eth_estimateGas", tried, "latest"), 64)
        except NodeError as error:
            raise _refusal(error) from None
        gas = needed + needed // GAS_MARGIN
        if gas > MAX_GAS:
            raise ConfigError(f"the transaction would take {needed} gas, more than any of ours: is it our contract?")
        unsigned: dict[str, Any] = {
            "chainId": self.config.chain_id,
            "nonce": nonce,
            "gas": gas,
            "value": 0,
            "data": call,
            "to": to or "",
        }
        if fees.priority is None:
            unsigned["gasPrice"] = fees.most
        else:
            unsigned |= {"type": 2, "maxFeePerGas": fees.most, "maxPriorityFeePerGas": fees.priority}
        signed = account.sign_transaction(unsigned)
        return Signed(bytes(signed.raw_transaction), bytes(signed.hash), nonce, fees)

    async def send(self, raw: bytes) -> None:
        """Hand a signed transaction to the node. Raises NodeError also for one that it has already; AnchorUnavailable
        says nothing of whether it arrived."""
        await self._rpc.ask("eth_sendRawTransaction", _hex(raw))

    def encode(self, function: str, arguments: list[object]) -> bytes:
        """The data of a call of the contract."""
        return bytes.fromhex(self._contract.encode_abi(function, args=arguments)[2:])

    async def _call(self, function: str, arguments: list[object]) -> bytes:
        call = {"to": self.address, "data": _hex(self.encode(function, arguments))}
        try:
            return data(await self._rpc.ask("eth_call", call, "latest"))
        except NodeError as error:
            raise _refusal(error) from None

    async def close(self) -> None:
        """Give up the connections."""
        await self._rpc.close()


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _gwei(wei: int) -> str:
    return f"{wei / GWEI:g} gwei"


def _refusal(error: NodeError) -> AnchorError:
    """A node's error as the contract's refusal, if it is one: what it says is in its data."""
    if not error.data.startswith(REVERT):
        return error
    try:
        (reason,) = decode(["string"], error.data[4:])
    except (DecodingError, ValueError, OverflowError):
        return error
    return AnchorRefused("the call", str(reason)[:200])
