#pragma once
// Records that any thread hands to one reactor, which is woken if it sleeps: how those who wait for what another reactor
// holds hear that they have it. No allocation, no lock.

#include <atomic>
#include <cstddef>

#include "transport/reactor/reactor.h"

namespace rbt::target {

/// Belongs to its reactor's thread, give() apart. Destroy it when nothing is expected.
class HandOver final : private transport::Source {
 public:
  /// Lies in the request that waits.
  struct Record {
    Record* next_handed = nullptr;
  };
  class Receiver {
   public:
    virtual ~Receiver() = default;
    /// From the reactor's turn, in the order of give(). The record is the receiver's again.
    virtual void on_handed_over(Record& record) = 0;
  };
  HandOver(transport::Reactor& reactor, Receiver& receiver) noexcept : reactor_(reactor), receiver_(receiver) {}
  ~HandOver() override;
  HandOver(const HandOver&) = delete;
  HandOver& operator=(const HandOver&) = delete;

  /// One more give() comes, or has come since this turn began. It is a source of the reactor while it expects some.
  void expect();
  /// Any thread: once for each expect(). `record` is not touched any more when it has returned.
  void give(Record& record) noexcept;
  [[nodiscard]] std::size_t expected() const noexcept { return expected_; }

 private:
  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  void disarm() override { sleeping_.store(false, std::memory_order_relaxed); }

  transport::Reactor& reactor_;
  Receiver& receiver_;
  std::size_t expected_ = 0;
  std::atomic<Record*> given_{nullptr};  // a stack: released by give(), acquired by poll()
  // give() looks at it after its push, arm() looks at the stack after setting it (both seq_cst): one of them sees the other.
  std::atomic<bool> sleeping_{false};
  std::atomic<int> givers_{0};  // inside give(): the destructor lets them out
};

/// First in, first out, linked as HandOver's records are: nobody waits here and is handed over at a time. One thread.
template <typename Waiter>
class WaitingLine {
 public:
  [[nodiscard]] bool empty() const noexcept { return first_ == nullptr; }
  [[nodiscard]] Waiter& front() const noexcept { return static_cast<Waiter&>(*first_); }
  void push(Waiter& waiter) noexcept {
    waiter.next_handed = nullptr;
    (last_ != nullptr ? last_->next_handed : first_) = &waiter;
    last_ = &waiter;
  }
  void pop() noexcept {
    first_ = first_->next_handed;
    if (first_ == nullptr) last_ = nullptr;
  }

 private:
  HandOver::Record* first_ = nullptr;
  HandOver::Record* last_ = nullptr;
};

}  // namespace rbt::target
