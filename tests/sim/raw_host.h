#pragma once
// A host without manners: sends any bytes as connection request or capsule, and writes down all that comes back. For
// tests of the target over the simulated network.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "common/nvme/capsule.h"
#include "common/nvme/connect_private_data.h"
#include "common/nvme/fabrics.h"
#include "common/uri.h"
#include "transport/fabric.h"
#include "transport/memory/shared_memory.h"

namespace rbt::test {

/// Registered memory of the host, filled with zeroes.
class HostMemory {
 public:
  HostMemory(transport::ProtectionDomain& domain, std::size_t size,
             transport::RemoteAccess access = transport::RemoteAccess::read_write);
  [[nodiscard]] std::span<std::byte> bytes() noexcept { return {memory_.data(), size_}; }
  [[nodiscard]] std::uint32_t lkey() const { return region_->lkey(); }
  [[nodiscard]] std::uint32_t rkey() const { return region_->rkey(); }
  [[nodiscard]] std::uint64_t address() const noexcept { return reinterpret_cast<std::uintptr_t>(memory_.data()); }
  /// A keyed descriptor of `length` bytes from `offset` on.
  [[nodiscard]] nvme::SglDescriptor keyed(std::uint32_t length, std::uint32_t offset = 0,
                                          nvme::RemoteInvalidate invalidate = nvme::RemoteInvalidate::no) const;

 private:
  transport::SharedMemory memory_;
  std::size_t size_;
  std::unique_ptr<transport::MemoryRegion> region_;
};

struct Response {
  nvme::CompletionQueueEntry cqe;
  std::optional<std::uint32_t> invalidated;
  [[nodiscard]] nvme::Status status() const { return cqe.status(); }
  [[nodiscard]] nvme::StatusCode code() const { return cqe.status().code(); }
};

/// One queue pair as its host sees it.
class RawQueue final : public transport::ConnectionHandler {
 public:
  void on_established(std::span<const std::byte> private_data) override;
  void on_disconnected(const transport::Disconnect& disconnect) override;
  void on_closed() override;

  /// Any bytes as a message, at most kMessageMax; sent when there is room. False: the connection is dead.
  bool send(std::span<const std::byte> message);
  /// A capsule with a CID of its own (unless `sqe` has one already) and data behind the entry. Returns the CID.
  std::uint16_t submit(nvme::SubmissionQueueEntry sqe, std::span<const std::byte> in_capsule = {});
  /// The answer to `cid`, if it has come; taken out.
  [[nodiscard]] std::optional<Response> take(std::uint16_t cid);
  /// The host's end is of no use any more.
  [[nodiscard]] bool ended() const noexcept { return disconnected || closed || failed; }

  static constexpr std::size_t kMessageMax = 64 + 16384;
  static constexpr std::size_t kSlots = 160;

  transport::Connection* connection = nullptr;  // null after on_closed()
  bool established = false;
  bool disconnected = false;
  bool closed = false;
  bool failed = false;  // a completion said so
  transport::Disconnect::Reason reason = transport::Disconnect::Reason::lost;
  std::vector<std::byte> private_data;  // of the reply or of the refusal
  std::deque<Response> responses;
  std::size_t malformed = 0;  // messages that are no response capsule

 private:
  friend class RawHost;
  void on_completion(const transport::Completion& completion);
  bool post_unsent();
  std::unique_ptr<HostMemory> sends_;
  std::vector<std::uint32_t> free_slots_;
  std::deque<std::pair<std::uint32_t, std::uint32_t>> unsent_;  // slot, length
  std::uint16_t next_cid_ = 1;
};

/// A machine full of them.
class RawHost final : public transport::CompletionHandler {
 public:
  RawHost(transport::Fabric& fabric, transport::Reactor& reactor);
  ~RawHost() override;
  void on_completions(std::span<const transport::Completion> batch) override;

  /// Begins a connection with these bytes as private data.
  RawQueue& connect(const Uri& address, std::span<const std::byte> private_data, std::uint32_t incoming_reads = 16);
  /// As a decent host would for queue `qid` of `entries` entries.
  RawQueue& connect(const Uri& address, Qid qid, std::uint32_t entries, Cntlid cntlid = Cntlid(0));
  /// Ends every connection that is left, without waiting.
  void close_all();
  [[nodiscard]] std::size_t connections() const noexcept { return group_->connections(); }

 private:
  std::unique_ptr<transport::PollGroup> group_;
  std::vector<std::unique_ptr<RawQueue>> queues_;
};

}  // namespace rbt::test
