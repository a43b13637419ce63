#include "transport/sim/receive_queue.h"

#include <cstring>

#include "common/check.h"
#include "transport/sim/machine.h"
#include "transport/sim/queue_pair.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

ReceiveQueue::ReceiveQueue(World& world, Device& device, std::uint32_t depth, std::uint32_t size)
    : world_(world),
      depth_(depth),
      size_(size),
      memory_(new std::byte[std::size_t{depth} * size]),  // not zeroed: a consumer sees old bytes, as on a device
      key_(world.keys().add(device.domain, memory_.get(), std::size_t{depth} * size, RemoteAccess::none)),
      states_(depth, State::free) {
  for (std::uint32_t i = 0; i < depth; ++i)
    free_.push(i);
}

ReceiveQueue::~ReceiveQueue() {
  world_.keys().remove(key_);
}

std::uint32_t ReceiveQueue::take() noexcept {
  if (free_.empty()) return kNone;
  const std::uint32_t buffer = free_.pop();
  states_[buffer] = State::filling;
  return buffer;
}

ReceivedMessage ReceiveQueue::lend(std::uint32_t buffer, std::uint32_t length, std::uint32_t buffer_id) noexcept {
  states_[buffer] = State::lent;
  ++lent_;
  return {{data(buffer), length}, key_ | KeyTable::kLocalBit, buffer_id};
}

void ReceiveQueue::give_back(std::uint32_t buffer) {
  check(buffer < depth_ && states_[buffer] != State::free, "a receive buffer is released once");
  if (states_[buffer] == State::lent) --lent_;
  states_[buffer] = State::free;
  // What was in it is gone: whoever still looks at a released buffer sees it.
  std::memset(data(buffer), 0xdb, std::min<std::size_t>(size_, 64));
  free_.push(buffer);
  for (const ActorId sender : parked_)
    if (Actor* actor = world_.agenda().find(sender); actor != nullptr) static_cast<QueuePair*>(actor)->receiver_ready();
  parked_.clear();
}

}  // namespace rbt::transport::sim
