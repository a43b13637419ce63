#pragma once
// Messages from other threads to a reactor: the only way in.

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

namespace rbt::transport {

/// A callable that runs once and need not be copyable (std::move_only_function is C++23).
class Task {
 public:
  template <typename Callable>
  requires(!std::is_same_v<std::remove_cvref_t<Callable>, Task>)
      Task(Callable&& callable)  // NOLINT(google-explicit-constructor): a lambda is a task
      : body_(std::make_unique<Body<std::remove_cvref_t<Callable>>>(std::forward<Callable>(callable))) {}
  void operator()() { body_->run(); }

 private:
  struct Base {
    virtual ~Base() = default;
    virtual void run() = 0;
  };
  template <typename Callable>
  struct Body final : Base {
    explicit Body(Callable&& c) : callable(std::move(c)) {}
    explicit Body(const Callable& c) : callable(c) {}
    void run() override { callable(); }
    Callable callable;
  };
  std::unique_ptr<Base> body_;
};

/// Many writers, one reader. The reader's polling costs one load of `pending_`.
class Mailbox {
 public:
  Mailbox();
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  /// Any thread. Makes descriptor() readable.
  void put(Task task);
  /// The reader: runs everything that is there. Returns how many ran.
  std::size_t run();
  /// The reader: true if run() would find something.
  [[nodiscard]] bool pending() const noexcept { return pending_.load(std::memory_order_acquire); }
  /// An eventfd; -1 if the kernel gave none.
  [[nodiscard]] int descriptor() const noexcept { return event_fd_; }
  /// Any thread: makes descriptor() readable without a message.
  void ring() noexcept;
  /// The reader: makes it unreadable again.
  void quiet() noexcept;

 private:
  int event_fd_;
  std::atomic<bool> pending_{false};  // set by put() after the task is in; cleared by run() before it takes them out
  std::mutex mutex_;
  std::vector<Task> tasks_;  // guarded by mutex_
};

}  // namespace rbt::transport
