// The verbs fabric with reactors on threads of their own: sleeping, and connections that move between them.

#include <pthread.h>
#include <time.h>

#include <atomic>
#include <thread>

#include "tests/sim/fabric_rig.h"
#include "tests/softroce/verbs_under_test.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;

namespace {

// A reactor on its own thread that accepts what it is given and sends every message back.
class EchoThread final : public CompletionHandler, public ListenerHandler {
 public:
  EchoThread(verbs::Fabric& fabric, const Clock& clock) {
    auto created = Reactor::create(clock, null_logger());
    REQUIRE(created.has_value());
    reactor_ = std::move(*created);
    auto opened = fabric.open_poll_group(*reactor_, {.receive_depth = 256, .receive_size = 256}, *this);
    REQUIRE(opened.has_value());
    group_ = std::move(*opened);
  }
  void start() {
    thread_ = std::thread([this] { reactor_->run(); });
  }
  ~EchoThread() override {
    reactor_->post([this] {
      listener_.reset();
      for (const auto& end : ends_)
        if (!end->closed) end->connection->close();
      closing_ = true;
      if (group_->connections() == 0) reactor_->stop();
    });
    thread_.join();
  }

  /// Requests go to `workers`, in turn.
  void listen(const Uri& address, std::vector<EchoThread*> workers) {
    workers_ = std::move(workers);
    auto listening = group_->listen(address, {}, *this);
    if (!listening) FAIL(listening.error().message());
    listener_ = std::move(*listening);
  }
  void take(std::unique_ptr<ConnectionRequest> request) {
    reactor_->post([this, request = std::move(request)]() mutable {
      End& end = *ends_.emplace_back(std::make_unique<End>(*this));
      auto accepted = group_->accept(std::move(request), {}, end);
      if (!accepted) {
        ends_.pop_back();
        ++refused;
        return;
      }
      end.connection = *accepted;
    });
  }
  [[nodiscard]] double cpu_seconds() {
    clockid_t id{};
    timespec used{};
    REQUIRE(::pthread_getcpuclockid(thread_.native_handle(), &id) == 0);
    REQUIRE(::clock_gettime(id, &used) == 0);
    return static_cast<double>(used.tv_sec) + static_cast<double>(used.tv_nsec) / 1e9;
  }
  [[nodiscard]] std::uint64_t sleeps() const { return reactor_->counters().sleeps.load(); }

  std::atomic<int> established{0};
  std::atomic<int> refused{0};
  std::atomic<int> echoed{0};

 private:
  struct End final : ConnectionHandler {
    explicit End(EchoThread& owner) : thread(owner) {}
    void on_established(std::span<const std::byte>) override { ++thread.established; }
    void on_disconnected(const Disconnect&) override { connection->close(); }
    void on_closed() override {
      closed = true;
      if (thread.closing_ && thread.group_->connections() == 0) thread.reactor_->stop();
    }
    EchoThread& thread;
    Connection* connection = nullptr;
    bool closed = false;
  };
  void on_request(std::unique_ptr<ConnectionRequest> request) override {
    workers_[next_++ % workers_.size()]->take(std::move(request));
  }
  void on_listener_failed(const Error&) override {}
  void on_completions(std::span<const Completion> batch) override {
    for (const Completion& completion : batch) {
      if (completion.status != CompletionStatus::success) continue;
      auto& end = *static_cast<End*>(completion.handler);
      if (completion.type == Completion::Type::send) {
        group_->release(static_cast<std::uint32_t>(completion.wr_id));
        ++echoed;
        continue;
      }
      const Segment segment{completion.message.bytes.data(),
                            static_cast<std::uint32_t>(completion.message.bytes.size()), completion.message.lkey};
      const WorkRequest request{.wr_id = completion.message.buffer_id, .segments = {&segment, 1}};
      if (end.connection->post({&request, 1}) != PostResult::posted) group_->release(completion.message.buffer_id);
    }
  }

  std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<PollGroup> group_;
  std::unique_ptr<Listener> listener_;
  std::vector<EchoThread*> workers_;
  std::size_t next_ = 0;
  std::vector<std::unique_ptr<End>> ends_;
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace

TEST_CASE("Connections spread over threads, sleep without using the processor, and wake for a message") {
  VerbsUnderTest fabric;
  constexpr int kConnections = 100;
  auto& verbs = static_cast<verbs::Fabric&>(fabric.server());
  EchoThread first(verbs, fabric.clock()), second(verbs, fabric.clock());
  first.listen(fabric.address(), {&first, &second});
  first.start();
  second.start();
  {
    Rig rig(fabric, {.receive_depth = 256, .receive_size = 256});
    std::vector<End*> ends;
    for (int i = 0; i < kConnections; ++i) {
      ends.push_back(&rig.client.connect(fabric.address(), {.send_depth = 16, .timeout = std::chrono::seconds(20)}));
      if (i % 10 == 9) rig.expect([&] { return ends.back()->established; }, "ten more are established");
    }
    rig.expect([&] { return first.established + second.established == kConnections; }, "all are");
    CHECK(first.established == kConnections / 2);
    Buffer buffer(ends[0]->connection->domain(), 100, RemoteAccess::none);
    const auto ping_all = [&](std::size_t messages) {
      for (End* const end : ends)
        end->post_send(buffer, 0, 100);
      rig.expect(
          [&] {
            return std::all_of(ends.begin(), ends.end(), [&](const End* end) {
              return end->messages.size() == messages && end->completed() == messages;
            });
          },
          "each is answered");
    };
    ping_all(1);

    const double used_before = first.cpu_seconds() + second.cpu_seconds();
    const std::uint64_t slept_before = first.sleeps() + second.sleeps();
    const Instant until = fabric.clock().now() + std::chrono::seconds(2);
    std::this_thread::sleep_until(until);  // this is what is measured: two seconds in which nothing happens
    const double used = first.cpu_seconds() + second.cpu_seconds() - used_before;
    INFO("processor time in 2 s idle with " << kConnections << " connections: " << used * 1e3 << " ms");
    CHECK(used < 0.02);
    CHECK(first.sleeps() + second.sleeps() - slept_before < 20);

    ping_all(2);  // and nobody has overslept
    ping_all(3);
  }
  CHECK(first.refused + second.refused == 0);
}
