# pragma version 0.4.3
# pragma evm-version london
"""
@title Anchored tree heads of Certificate Transparency logs
@notice Append-only, one sequence of heads a log. The owner says who publishes for which log, and can neither write
        a head nor touch one. A log's size grows strictly and its timestamps never go back; nothing is ever removed.
@dev London's instructions: the code runs on every chain since, whatever its newest ones are.
     A head takes two new slots, and one slot a log is written over. `word` packs what is not the root:
     bits 192..255 index + 1, 128..191 size, 64..127 timestamp (milliseconds since 1970), 0..63 number of the block
     that took it. The block's number lets anybody tell a final head from the newest state alone.
"""

struct Head:
    root: bytes32
    word: uint256

event Anchored:
    log_id: indexed(bytes32)
    size: indexed(uint64)
    root: bytes32
    timestamp: uint64
    index: uint64

event PublisherSet:
    log_id: indexed(bytes32)
    former: address
    publisher: address

event OwnershipOffered:
    owner: indexed(address)
    candidate: indexed(address)

event OwnershipTaken:
    former: indexed(address)
    owner: indexed(address)

# A day: a clock that is this far ahead is wrong, and its timestamp would shut the log out until then.
MOST_AHEAD: constant(uint256) = 86400
LOW: constant(uint256) = 2**64 - 1

owner: public(address)
candidate: public(address)
publishers: public(HashMap[bytes32, address])
newest: HashMap[bytes32, uint256]  # The newest head's word; 0: the log has none.
heads: HashMap[bytes32, HashMap[uint256, Head]]


@deploy
def __init__():
    self.owner = msg.sender
    log OwnershipTaken(former=empty(address), owner=msg.sender)


@external
def anchor(log_id: bytes32, size: uint64, root: bytes32, timestamp: uint64):
    """
    @notice Append a head. Only the log's publisher can; the same size twice is refused.
    @param log_id SHA-256 of the log's public key (RFC 6962 section 3.2)
    @param size Entries in the tree
    @param root Merkle tree hash (RFC 6962 section 2.1)
    @param timestamp Of the signed tree head, in milliseconds since 1970
    """
    assert msg.sender == self.publishers[log_id], "not the publisher of this log"
    last: uint256 = self.newest[log_id]
    assert convert(size, uint256) > ((last >> 128) & LOW), "size does not grow"
    assert convert(timestamp, uint256) >= ((last >> 64) & LOW), "timestamp goes back"
    assert convert(timestamp, uint256) <= (block.timestamp + MOST_AHEAD) * 1000, "timestamp is in the future"
    index: uint256 = last >> 192
    word: uint256 = (
        ((index + 1) << 192)
        | (convert(size, uint256) << 128)
        | (convert(timestamp, uint256) << 64)
        | (block.number & LOW)
    )
    self.newest[log_id] = word
    self.heads[log_id][index] = Head(root=root, word=word)
    log Anchored(log_id=log_id, size=size, root=root, timestamp=timestamp, index=convert(index, uint64))


@view
@external
def count(log_id: bytes32) -> uint256:
    """
    @notice How many heads the log has.
    """
    return self.newest[log_id] >> 192


@view
@external
def head(log_id: bytes32, index: uint256) -> Head:
    """
    @notice A head by its index; fails when there is none.
    """
    assert index < self.newest[log_id] >> 192, "no such head"
    return self.heads[log_id][index]


@view
@external
def newest_head(log_id: bytes32) -> Head:
    """
    @notice The log's newest head; word 0: it has none.
    """
    word: uint256 = self.newest[log_id]
    if word == 0:
        return empty(Head)
    return self.heads[log_id][(word >> 192) - 1]


@view
@external
def newest_by_block(log_id: bytes32, number: uint64) -> Head:
    """
    @notice The newest head that a block up to `number` took; word 0: there is none.
    """
    return self._newest(log_id, 0, convert(number, uint256))


@view
@external
def newest_by_size(log_id: bytes32, size: uint64) -> Head:
    """
    @notice The newest head of at most `size` entries; word 0: there is none.
    """
    return self._newest(log_id, 128, convert(size, uint256))


@view
@internal
def _newest(log_id: bytes32, at: uint256, most: uint256) -> Head:
    # Sizes and block numbers grow with the index: halve [low, high) until low heads are known to be within.
    low: uint256 = 0
    high: uint256 = self.newest[log_id] >> 192
    for _: uint256 in range(64):
        if low == high:
            break
        middle: uint256 = (low + high) // 2
        if ((self.heads[log_id][middle].word >> at) & LOW) <= most:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return empty(Head)
    return self.heads[log_id][low - 1]


@external
def set_publisher(log_id: bytes32, publisher: address):
    """
    @notice Say who publishes a log's heads, instead of who did; the zero address: nobody.
    """
    assert msg.sender == self.owner, "not the owner"
    log PublisherSet(log_id=log_id, former=self.publishers[log_id], publisher=publisher)
    self.publishers[log_id] = publisher


@external
def offer_ownership(candidate: address):
    """
    @notice First step: name who may take over; the zero address takes the offer back.
    """
    assert msg.sender == self.owner, "not the owner"
    self.candidate = candidate
    log OwnershipOffered(owner=msg.sender, candidate=candidate)


@external
def take_ownership():
    """
    @notice Second step: the candidate becomes the owner.
    """
    assert msg.sender == self.candidate, "ownership was not offered to this account"
    log OwnershipTaken(former=self.owner, owner=msg.sender)
    self.owner = msg.sender
    self.candidate = empty(address)
