#pragma once
// Faults between a file store and the kernel, and a count of what passes.

#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "target/store/io_engine.h"
#include "target/store/thread_engine.h"
#include "target/store/uring_engine.h"

namespace rbt::target::test {

/// What happens to an operation instead of, or before, being carried out.
struct Fault {
  std::optional<int> error;                ///< it fails with this errno, and nothing is carried out
  std::optional<std::uint64_t> at_most{};  ///< it transfers this many bytes at the most
};

/// Passes operations on to `real`, unless `decide` says something else. Counts them all.
class FaultyFactory final : public IoEngineFactory {
 public:
  using Kind = IoOperation::Kind;
  explicit FaultyFactory(IoEngineFactory& real) : real_(real) {}

  Result<std::unique_ptr<IoEngine>> open(transport::Reactor& reactor, transport::BufferPool& buffers) override {
    auto below = real_.open(reactor, buffers);
    if (!below) return failure(std::move(below.error()));
    return std::make_unique<Engine>(*this, reactor, std::move(*below));
  }
  [[nodiscard]] std::string_view name() const noexcept override { return "faulty"; }

  [[nodiscard]] std::size_t count(Kind kind) const { return count_[static_cast<std::size_t>(kind)]; }
  [[nodiscard]] std::size_t total() const { return total_; }

  /// Called with the operation and its number, from 0.
  std::function<Fault(const IoOperation&, std::size_t)> decide = [](const IoOperation&, std::size_t) {
    return Fault{};
  };
  /// Operations are kept back, in order, until it is false again.
  bool hold = false;

 private:
  struct Engine final : IoEngine {
    Engine(FaultyFactory& o, transport::Reactor& r, std::unique_ptr<IoEngine> b)
        : owner(o), reactor(r), below(std::move(b)) {}
    std::unique_ptr<IoQueue> open(int fd, IoHandler& handler) override {
      auto queue = std::make_unique<Queue>(owner, reactor, handler);
      queue->below = below->open(fd, *queue);
      return queue;
    }
    FaultyFactory& owner;
    transport::Reactor& reactor;
    std::unique_ptr<IoEngine> below;
  };
  struct Queue final : IoQueue, IoHandler, transport::Source {
    Queue(FaultyFactory& o, transport::Reactor& r, IoHandler& h) : owner(o), reactor(r), handler(h) {
      reactor.add(*this);
    }
    ~Queue() override { reactor.remove(*this); }
    void submit(IoOperation& operation) override {
      ++owner.count_[static_cast<std::size_t>(operation.kind)];
      faults.push_back({&operation, owner.decide(operation, owner.total_++)});
    }
    std::size_t poll() override {
      if (owner.hold) return 0;
      const auto now = std::exchange(faults, {});
      for (const auto& [operation, fault] : now) {
        if (fault.error) {
          handler.on_io_done(*operation, -*fault.error);
        } else {
          if (fault.at_most && *fault.at_most < operation->length) {
            whole[operation] = {operation->length, *fault.at_most};
            operation->length = (*fault.at_most + 511) / 512 * 512;  // what O_DIRECT takes; more than it admits
          }
          if (operation->length == 0 && operation->kind != Kind::sync_data) {
            on_io_done(*operation, 0);
          } else {
            below->submit(*operation);
          }
        }
      }
      return now.size();
    }
    bool arm() override { return faults.empty() || owner.hold; }
    void on_io_done(IoOperation& operation, std::int64_t result) override {
      if (const auto found = whole.find(&operation); found != whole.end()) {
        operation.length = found->second.length;
        result = std::min(result, static_cast<std::int64_t>(found->second.at_most));
        whole.erase(found);
      }
      handler.on_io_done(operation, result);
    }

    FaultyFactory& owner;
    transport::Reactor& reactor;
    IoHandler& handler;
    std::unique_ptr<IoQueue> below;
    std::vector<std::pair<IoOperation*, Fault>> faults;
    struct Cut {
      std::uint64_t length;
      std::uint64_t at_most;
    };
    std::map<IoOperation*, Cut> whole;  // as they were before they were cut
  };

  IoEngineFactory& real_;
  std::array<std::size_t, 7> count_{};
  std::size_t total_ = 0;
};

}  // namespace rbt::target::test
