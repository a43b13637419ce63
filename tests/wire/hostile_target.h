#pragma once
// A host in front of a target that lies, and beside a session of the same thread with an honest one, which goes on writing
// and reading back.

#include <catch2/catch.hpp>
#include <exception>
#include <memory>

#include "tests/sim/initiator_rig.h"
#include "transport/reactor/timer.h"

namespace rbt::test {

/// A session whose requests are each other's successors: a block is written, read back and compared, without end.
class HonestSession {
 public:
  HonestSession(Host& host, RawTarget& honest)
      : host_(host),
        honest_(honest),
        session_(host.connect(honest.uri())),
        queue_(host.open(*session_, {.depth = 4})),
        rest_(host.reactor->timers(), [this] { begin(); }) {
    request_.context = this;
    request_.done = [](initiator::Request& request) { static_cast<HonestSession*>(request.context)->on_done(); };
    begin();
  }
  ~HonestSession() {
    rest_.cancel();
    queue_.reset();
  }
  /// Blocks more than there were are verified, and none was wrong.
  void work() {
    const std::uint64_t wanted = verified_ + 4;
    CHECK(host_.reactor->run_until([&] { return verified_ >= wanted || hurt_; }, host_.network.clock().now() + 10s));
    CHECK_FALSE(hurt_);
    CHECK(honest_.links() == 2);
  }

 private:
  void begin() {
    block_ = (block_ + 1) % 64;
    written_.fill(host_.network.random());
    reading_ = false;
    submit();
  }
  void submit() {
    const initiator::Namespace& disk = session_->namespaces().front();
    const auto done = reading_ ? queue_->read(request_, disk, Lba(block_), read_.all())
                               : queue_->write(request_, disk, Lba(block_), written_.all());
    hurt_ |= done != initiator::Submitted::accepted;
  }
  void on_done() {
    if (request_.outcome == initiator::Outcome::aborted) return;  // the end
    hurt_ |= request_.outcome != initiator::Outcome::success;
    if (hurt_) return;
    if (!reading_) {
      reading_ = true;
      return submit();
    }
    hurt_ |= read_.bytes != written_.bytes;
    ++verified_;
    verified_ % 4 != 0 ? begin() : rest_.arm(host_.reactor->clock().now() + 50ms);
  }

  Host& host_;
  RawTarget& honest_;
  std::unique_ptr<initiator::Session> session_;
  std::unique_ptr<initiator::QueuePair> queue_;
  transport::Timer rest_;
  initiator::Request request_;
  Memory written_{RawTarget::kBlockSize};
  Memory read_{RawTarget::kBlockSize};
  std::uint64_t block_ = 0;
  std::uint64_t verified_ = 0;
  bool reading_ = false;
  bool hurt_ = false;
};

struct LyingWorld {
  LyingWorld() {
    host.options.connect_timeout = 5s;
    neighbour.work();
  }
  ~LyingWorld() {
    if (std::uncaught_exceptions() == 0) {
      neighbour.work();
      host.run(100ms);
      CHECK(target.links() == 0);  // whoever had a session has let it go
    }
  }
  /// Whatever becomes of it: a session, or an error with words; in bounded time, and the neighbour did not notice.
  std::unique_ptr<initiator::Session> try_connect() {
    const Instant before = network.clock().now();
    auto session = host.try_connect(target.uri());
    CHECK(network.clock().now() - before < 11s);
    if (!session) {
      CHECK_FALSE(session.error().message().empty());
      return nullptr;
    }
    return std::move(*session);
  }
  transport::sim::Network network;
  RawTarget target{network};
  RawTarget honest{network, "honest"};
  Host host{network};
  HonestSession neighbour{host, honest};
};

}  // namespace rbt::test
