#pragma once
// The poll group of the shm fabric: connections of one reactor, their receive buffers, their completions.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "transport/fabric.h"
#include "transport/shm/fabric.h"
#include "transport/shm/memory.h"
#include "transport/shm/queue_pair.h"

namespace rbt::transport::shm {

/// Receive buffers in one piece. One thread.
class ReceivePool {
 public:
  [[nodiscard]] static Result<std::unique_ptr<ReceivePool>> create(std::uint32_t count, std::uint32_t size,
                                                                   Domain& domain);
  ~ReceivePool();
  ReceivePool(const ReceivePool&) = delete;
  ReceivePool& operator=(const ReceivePool&) = delete;

  [[nodiscard]] bool empty() const noexcept { return free_.empty(); }
  /// Not when empty().
  [[nodiscard]] ReceivedMessage take(std::uint32_t length) noexcept;
  void give_back(std::uint32_t id) noexcept;
  [[nodiscard]] std::uint32_t size() const noexcept { return size_; }

 private:
  ReceivePool(std::byte* data, std::uint32_t count, std::uint32_t size);
  std::byte* data_;
  std::uint32_t size_;
  std::size_t stride_;
  std::vector<std::uint32_t> free_;  // the last one given back is the next one taken: it is still in the cache
  std::vector<bool> lent_;
  std::unique_ptr<MemoryRegion> region_;
};

/// One thread: its reactor's.
class Group final : public PollGroup {
 public:
  [[nodiscard]] static Result<std::unique_ptr<PollGroup>> create(Reactor& reactor, Domain& domain,
                                                                 const Options& fabric, const PollGroupOptions& options,
                                                                 CompletionHandler& handler);
  ~Group() override;

  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  void disarm() override;
  [[nodiscard]] Result<std::unique_ptr<Listener>> listen(const Uri& address, const ListenOptions& options,
                                                         ListenerHandler& handler) override;
  [[nodiscard]] Result<transport::Connection*> connect(const Uri& address, const ConnectOptions& options,
                                                       ConnectionHandler& handler) override;
  [[nodiscard]] Result<transport::Connection*> accept(std::unique_ptr<ConnectionRequest> request,
                                                      const AcceptOptions& options,
                                                      ConnectionHandler& handler) override;
  void release(std::uint32_t buffer_id) override { receives_->give_back(buffer_id); }
  void flush() override;
  [[nodiscard]] std::size_t connections() const noexcept override { return queue_pairs_.size(); }
  [[nodiscard]] const PollGroupCounters& counters() const noexcept override { return counters_; }

  // For its queue pairs.
  [[nodiscard]] Reactor& reactor() noexcept { return reactor_; }
  [[nodiscard]] Domain& domain() noexcept { return domain_; }
  [[nodiscard]] PollGroupCounters& count() noexcept { return counters_; }
  [[nodiscard]] ReceivePool& receives() noexcept { return *receives_; }
  [[nodiscard]] LocalKeys& local_keys() noexcept {
    domain_.refresh(local_keys_, local_version_);
    return local_keys_;
  }
  /// `covers`: requests of `owner` that are over with this completion.
  void complete(QueuePair& owner, const Completion& completion, std::uint32_t covers);
  /// Forgets completions of `owner` that were not delivered.
  void purge(QueuePair& owner) noexcept;
  void queue_work(QueuePair& owner);
  /// Some connection has something to report, or is to go.
  void attend() noexcept { attention_ = true; }

 private:
  Group(Reactor& reactor, Domain& domain, const Options& fabric, std::unique_ptr<ReceivePool> receives,
        CompletionHandler& handler);
  struct Owned {
    QueuePair* owner;
    std::uint32_t covers;
  };
  std::size_t deliver();
  std::size_t work();
  std::size_t reap();
  transport::Connection* adopt(std::unique_ptr<QueuePair> queue_pair, std::uint32_t send_depth);

  Reactor& reactor_;
  Domain& domain_;
  const Options options_;
  CompletionHandler& handler_;
  std::unique_ptr<ReceivePool> receives_;
  LocalKeys local_keys_;
  std::uint64_t local_version_ = 0;
  std::vector<std::unique_ptr<QueuePair>> queue_pairs_;
  std::vector<QueuePair*> to_work_;
  std::vector<QueuePair*> working_;
  std::vector<Completion> pending_;
  std::vector<Owned> owners_;  // of pending_, in step
  std::vector<Completion> delivering_;
  std::size_t completions_max_ = 0;
  bool attention_ = false;
  PollGroupCounters counters_;
};

}  // namespace rbt::transport::shm
