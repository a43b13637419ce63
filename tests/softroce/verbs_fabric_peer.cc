// The other process of verbs_fabric's fault tests: connects or listens, says on standard output what it hears, and dies
// when it is killed.
//
//   verbs_fabric_peer connect HOST PORT          says "established", then "disconnected …" and ends
//   verbs_fabric_peer stream HOST PORT SIZE      the same, and sends messages of SIZE bytes without pause
//   verbs_fabric_peer listen HOST PORT           says "listening …", accepts all; ends when it hears nobody any more

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "common/uri.h"
#include "transport/memory/shared_memory.h"
#include "transport/verbs/fabric.h"

using namespace rbt;
using namespace rbt::transport;

namespace {

void say(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

std::string_view word(Disconnect::Reason reason) {
  switch (reason) {
    case Disconnect::Reason::refused: return "refused";
    case Disconnect::Reason::unreachable: return "unreachable";
    case Disconnect::Reason::peer_closed: return "peer_closed";
    case Disconnect::Reason::lost: return "lost";
    case Disconnect::Reason::device_removed: return "device_removed";
    case Disconnect::Reason::address_changed: return "address_changed";
    case Disconnect::Reason::local: return "local";
  }
  return "?";
}

class Peer final : public CompletionHandler, public ListenerHandler {
 public:
  explicit Peer(Reactor& reactor) : reactor_(reactor) {}
  struct End final : ConnectionHandler {
    explicit End(Peer& owner) : peer(owner) {}
    void on_established(std::span<const std::byte>) override {
      say("established");
      if (peer.stream_size != 0) peer.stream(*this);
    }
    void on_disconnected(const Disconnect& disconnect) override {
      say(fmt::format("disconnected {}: {}", word(disconnect.reason), disconnect.error.message()));
      connection->close();
    }
    void on_closed() override {
      say("closed");
      peer.ended();
    }
    Peer& peer;
    Connection* connection = nullptr;
  };

  void on_completions(std::span<const Completion> batch) override {
    for (const Completion& completion : batch) {
      if (completion.type == Completion::Type::receive) {
        if (completion.status == CompletionStatus::success) group->release(completion.message.buffer_id);
      } else if (completion.status == CompletionStatus::success) {
        send(*static_cast<End*>(completion.handler));
      }
    }
  }
  void on_request(std::unique_ptr<ConnectionRequest> request) override {
    auto* const end = new End(*this);  // the process ends with it
    auto accepted = group->accept(std::move(request), {}, *end);
    if (!accepted) return say("accept: " + accepted.error().message());
    end->connection = *accepted;
  }
  void on_listener_failed(const Error& error) override {
    say("listener failed: " + error.message());
    listener_failed_ = true;
    ended();
  }
  void stream(End& end) {
    auto memory = SharedMemory::create(Bytes(stream_size), {.name = "stream"});
    if (!memory) return say(memory.error().message());
    memory_ = std::move(*memory);
    auto region = end.connection->domain().register_memory(memory_.span(), RemoteAccess::none);
    if (!region) return say(region.error().message());
    region_ = std::move(*region);
    for (int i = 0; i < 16; ++i)
      send(end);
  }
  void send(End& end) {
    const Segment segment{memory_.data(), stream_size, region_->lkey()};
    const WorkRequest request{.segments = {&segment, 1}};
    if (end.connection->post({&request, 1}) == PostResult::full) say("full");
  }
  void ended() {
    if (group->connections() == 0 && (!listening || listener_failed_)) reactor_.stop();
  }

  std::unique_ptr<PollGroup> group;
  std::uint32_t stream_size = 0;
  bool listening = false;

 private:
  Reactor& reactor_;
  SharedMemory memory_;
  std::unique_ptr<MemoryRegion> region_;
  bool listener_failed_ = false;
};

int fail(const Error& error) {
  say("error: " + error.message());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::string_view what = argv[1];
  Uri uri;
  uri.host = argv[2];
  uri.port = static_cast<std::uint16_t>(std::atoi(argv[3]));

  const SystemClock clock;
  auto reactor = Reactor::create(clock, null_logger());
  if (!reactor) return fail(reactor.error());
  auto fabric = verbs::Fabric::open(null_logger());
  if (!fabric) return fail(fabric.error());
  Peer peer(**reactor);
  auto group = (*fabric)->open_poll_group(**reactor, {.receive_depth = 64, .receive_size = 4160}, peer);
  if (!group) return fail(group.error());
  peer.group = std::move(*group);

  Peer::End end(peer);
  std::unique_ptr<Listener> listener;
  if (what == "listen") {
    auto listening = peer.group->listen(uri, {}, peer);
    if (!listening) return fail(listening.error());
    listener = std::move(*listening);
    peer.listening = true;
    say("listening " + listener->address());
  } else {
    if (what == "stream" && argc > 4) peer.stream_size = static_cast<std::uint32_t>(std::atoi(argv[4]));
    auto connection = peer.group->connect(uri, {}, end);
    if (!connection) return fail(connection.error());
    end.connection = *connection;
  }
  (*reactor)->run();
  listener.reset();
  return peer.group->connections() == 0 ? 0 : 3;
}
