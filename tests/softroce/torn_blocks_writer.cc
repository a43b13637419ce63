// A host that does nothing but write, on many connections, until it is killed or all its connections are gone: then it says how
// many writes were under way.
//   torn_blocks_writer URI CONNECTIONS ROUND
#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "initiator/initiator.h"
#include "tests/softroce/torn_blocks.h"
#include "transport/verbs/fabric.h"

namespace rbt::test::torn {
namespace {

using namespace std::chrono_literals;
using initiator::Outcome;
using initiator::Request;

constexpr std::size_t kBuffers = 2;

struct Counts {
  std::size_t answered = 0;   // connections that had an answer
  std::size_t under_way = 0;  // writes that the end of their connections met
  std::size_t ended = 0;      // of all writes
};

/// Several writes at a time, out of two buffers, to the same blocks: enough to go on for a while after the host has died.
class Connection {
 public:
  Connection(std::unique_ptr<initiator::QueuePair> queue, const initiator::Namespace& space, std::size_t index,
             std::uint64_t round, Counts& counts)
      : queue_(std::move(queue)), space_(space), first_(first_block(index)), counts_(counts) {
    std::array<std::span<std::byte>, kBuffers> buffers;
    for (std::size_t i = 0; i < kBuffers; ++i) {
      buffers[i] = queue_->buffers()->allocate(kTransfer);
      if (buffers[i].empty()) std::abort();
      for (std::size_t block = 0; block < kTransferBlocks; ++block)
        put_tag(buffers[i].subspan(block * kBlock, kBlock),
                Tag{.round = round, .buffer = index * kBuffers + i, .lba = first_ + block}.word());
    }
    for (std::size_t i = 0; i < writes_.size(); ++i) {
      writes_[i].piece = {buffers[i % kBuffers].data(), kTransfer};
      writes_[i].connection = this;
      writes_[i].request.context = &writes_[i];
      writes_[i].request.done = [](Request& request) {
        Write& write = *static_cast<Write*>(request.context);
        write.connection->on_done(write);
      };
    }
  }
  /// Its first write; the others when every connection has had an answer.
  void begin() { submit(writes_.front()); }
  void go_on() {
    for (std::size_t i = 1; i < writes_.size(); ++i)
      submit(writes_[i]);
  }

 private:
  struct Write {
    Connection* connection = nullptr;
    Request request;
    iovec piece{};
  };

  void submit(Write& write) {
    if (queue_->write(write.request, space_, Lba(first_), {&write.piece, 1}) != initiator::Submitted::accepted)
      ++counts_.ended;
  }
  void on_done(Write& write) {
    if (write.request.outcome != Outcome::success) {
      ++counts_.ended;
      if (write.request.outcome == Outcome::disconnected) ++counts_.under_way;
      return;
    }
    if (!std::exchange(answered_, true)) ++counts_.answered;
    submit(write);
  }

  std::array<Write, kWrites> writes_;  // outlive the queue pair
  std::unique_ptr<initiator::QueuePair> queue_;
  const initiator::Namespace& space_;
  std::uint64_t first_;
  Counts& counts_;
  bool answered_ = false;
};

int complain(const Error& error) {
  fmt::print(stderr, "torn_blocks_writer: {}\n", error.message());
  return 1;
}

int run(const Uri& uri, std::size_t count, std::uint64_t round) {
  const SystemClock clock;
  auto random = Random::from_entropy();
  const auto logger = make_stderr_logger(LogLevel::error);
  auto reactor = transport::Reactor::create(clock, *logger);
  if (!reactor) return complain(reactor.error());
  auto fabric = transport::verbs::Fabric::open(*logger);
  if (!fabric) return complain(fabric.error());
  auto session = initiator::Session::connect({**fabric, clock, *logger, random}, uri,
                                             {.io_queues = static_cast<std::uint32_t>(count),
                                              .keep_alive = 0s,
                                              .connect_timeout = 60s,
                                              .command_timeout = 120s,
                                              .management = reactor->get()});
  if (!session) return complain(session.error());
  auto space = (*session)->find(uri.nsid);
  if (!space) return complain(space.error());
  Counts counts;
  std::vector<std::unique_ptr<Connection>> connections;
  for (std::size_t i = 0; i < count; ++i) {
    auto queue = (*session)->open_queue_pair(**reactor,
                                             {.depth = kWrites, .buffers = Bytes(2 * kMiB), .bounce = Bytes(2 * kMiB)});
    if (!queue) return complain(queue.error());
    connections.push_back(std::make_unique<Connection>(std::move(*queue), **space, i, round, counts));
  }
  for (const auto& connection : connections)
    connection->begin();
  if (!(*reactor)->run_until([&] { return counts.answered == count; }, clock.now() + 60s)) return 1;
  for (const auto& connection : connections)
    connection->go_on();
  fmt::print("writing\n");
  std::fflush(stdout);
  (void)(*reactor)->run_until([&] { return counts.ended == kWrites * count; }, Instant::max());
  fmt::print("{} writes were under way.\n", counts.under_way);
  std::fflush(stdout);
  return 0;
}

}  // namespace
}  // namespace rbt::test::torn

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const auto uri = rbt::Uri::parse(argv[1]);
  if (!uri) return rbt::test::torn::complain(uri.error());
  return rbt::test::torn::run(*uri, std::strtoul(argv[2], nullptr, 0), std::strtoul(argv[3], nullptr, 0));
}
