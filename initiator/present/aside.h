#pragma once
// Calls into the kernel that may wait for what only the caller's reactor can do: on a thread of their own, one at a time.

#include <functional>
#include <memory>
#include <string>

#include "common/result.h"
#include "initiator/volume.h"
#include "transport/reactor/reactor.h"

namespace rbt::initiator {

/// Belongs to its reactor's thread.
class Aside {
 public:
  /// On the thread. What it refers to must live until it ends, which can be after the Aside.
  using Work = std::function<Result<void>()>;
  /// From within a turn of the reactor.
  using Done = std::function<void(Result<void>)>;

  [[nodiscard]] static Result<std::unique_ptr<Aside>> create(transport::Reactor& reactor);
  /// What runs is left to itself, and `done` is not called any more.
  ~Aside();
  Aside(const Aside&) = delete;
  Aside& operator=(const Aside&) = delete;

  void start(Work work, Done done);
  [[nodiscard]] bool running() const noexcept { return done_ != nullptr; }
  /// start(), and `volume` and its reactor go on until it has ended. Error: its own; timed_out at `deadline`, with `what`.
  [[nodiscard]] Result<void> run(Volume& volume, Instant deadline, std::string what, Work work);

 private:
  struct Shared;
  Aside(transport::Reactor& reactor, std::shared_ptr<Shared> shared) noexcept
      : reactor_(reactor), shared_(std::move(shared)) {}
  void on_readable();

  transport::Reactor& reactor_;
  std::shared_ptr<Shared> shared_;
  Done done_;
};

}  // namespace rbt::initiator
