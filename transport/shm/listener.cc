#include "transport/shm/listener.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace rbt::transport::shm {

namespace {
constexpr int kKnocksPerTurn = 16;
constexpr Duration kOutOfDescriptorsPause = std::chrono::milliseconds(100);
}  // namespace

// ---- Knock

Knock::Knock(Taken parts, const HelloMessage& hello, std::string peer, std::shared_ptr<std::atomic<int>> unanswered)
    : parts_(std::move(parts)),
      private_data_(hello.private_data),
      private_size_(hello.private_size),
      incoming_reads_(hello.incoming_reads),
      peer_(std::move(peer)),
      unanswered_(std::move(unanswered)) {
  unanswered_->fetch_add(1, std::memory_order_relaxed);
}

Knock::~Knock() {
  reject({});
}

std::string Knock::peer_host() const {
  const auto who = credentials(parts_.socket.get());
  return who ? fmt::format("uid {}", who->uid) : peer_;
}

void Knock::answered() noexcept {
  if (unanswered_ != nullptr) unanswered_->fetch_sub(1, std::memory_order_relaxed);
  unanswered_.reset();
}

void Knock::reject(std::span<const std::byte> private_data) {
  if (!parts_.socket.valid()) return;
  RefuseMessage message;
  message.data_size = put_bytes(message.data, private_data.data(), std::min(private_data.size(), kAcceptDataMax));
  [[maybe_unused]] const Sent sent = send(parts_.socket.get(), message);  // else the end of the socket must do
  parts_ = {};
  answered();
}

Knock::Taken Knock::take() {
  answered();
  return std::move(parts_);
}

// ---- SocketListener

// Somebody who has connected and not said hello yet.
struct SocketListener::Guest {
  Descriptor socket;
  std::string peer;
  bool trusted;
  Instant deadline;
};

Result<std::unique_ptr<Listener>> SocketListener::open(Reactor& reactor, const Uri& address,
                                                       const AccessPolicy& otherwise, const ListenOptions& options,
                                                       ListenerHandler& handler) {
  auto path = socket_path(address, PathUse::listen);
  if (!path) return failure(std::move(path.error()));
  auto policy = access_policy(address, otherwise);
  if (!policy) return failure(std::move(policy.error()));
  auto socket = BoundSocket::bind(*path, *policy, std::max(options.backlog, 1));
  if (!socket) return failure(std::move(socket.error()));
  std::unique_ptr<SocketListener> listener(new SocketListener(reactor, std::move(*socket), *policy, options, handler));
  auto watched = listener->watch();
  if (!watched) return failure(std::move(watched.error()));
  return listener;
}

SocketListener::SocketListener(Reactor& reactor, BoundSocket socket, const AccessPolicy& policy,
                               const ListenOptions& options, ListenerHandler& handler)
    : reactor_(reactor),
      socket_(std::move(socket)),
      policy_(policy),
      options_(options),
      handler_(handler),
      silence_(reactor.timers(), [this] { on_silence(); }),
      resume_(reactor.timers(), [this] {
        if (auto watched = watch(); !watched) handler_.on_listener_failed(watched.error());
      }) {}

SocketListener::~SocketListener() {
  reactor_.unwatch(socket_.get());
  for (const auto& guest : guests_)
    reactor_.unwatch(guest->socket.get());
}

std::string SocketListener::address() const {
  Uri uri;
  uri.scheme = Uri::Scheme::shm;
  uri.port = 0;
  uri.options["socket"] = socket_.path();
  return uri.to_string();
}

Result<void> SocketListener::watch() {
  return reactor_.watch(socket_.get(), EPOLLIN, [this](std::uint32_t) { on_knock(); });
}

void SocketListener::on_knock() {
  for (int i = 0; i < kKnocksPerTurn; ++i) {
    Descriptor socket(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (socket.valid()) {
      admit(std::move(socket));
      continue;
    }
    if (errno == EAGAIN) return;
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (complaints_.allow(reactor_.now()))
      reactor_.logger().warning("{}",
                                Error::from_errno(errno, fmt::format("accepting a connection on {}", socket_.path()),
                                                  "trying again in 100 ms; raise the limit of open files")
                                    .message());
    // The listener stays readable: without a pause this would be a busy loop.
    reactor_.unwatch(socket_.get());
    return resume_.arm(reactor_.now() + kOutOfDescriptorsPause);
  }
}

void SocketListener::admit(Descriptor socket) {
  const auto peer = credentials(socket.get());
  if (!peer) return;
  std::string described = describe_peer(socket.get());
  if (!allowed(socket.get(), *peer, policy_))
    return turn_away(
        socket.get(), Refusal::not_allowed, described,
        fmt::format("uid {} may not connect: the target runs as uid {} and allows that user and root only, "
                    "unless told otherwise",
                    peer->uid, ::geteuid()));
  const auto waiting = static_cast<int>(guests_.size()) + unanswered_->load(std::memory_order_relaxed);
  if (waiting >= options_.backlog)
    return turn_away(socket.get(), Refusal::busy, described,
                     fmt::format("{} connection requests wait for an answer already: try again", waiting));
  guests_.push_back(std::make_unique<Guest>(
      Guest{std::move(socket), std::move(described), trusted(*peer), reactor_.now() + options_.half_open}));
  Guest* const entry = guests_.back().get();
  if (!silence_.armed()) silence_.arm(entry->deadline);
  auto watched = reactor_.watch(entry->socket.get(), EPOLLIN, [this, entry](std::uint32_t) { on_guest(*entry); });
  if (!watched) drop(*entry);
}

// Guests are dropped in the order in which they came: all have the same time.
void SocketListener::on_silence() {
  while (!guests_.empty() && guests_.front()->deadline <= reactor_.now()) {
    if (complaints_.allow(reactor_.now()))
      reactor_.logger().warning("{} connected to {} and has said nothing for {} ms: dropped", guests_.front()->peer,
                                socket_.path(),
                                std::chrono::duration_cast<std::chrono::milliseconds>(options_.half_open).count());
    drop(*guests_.front());
  }
  if (!guests_.empty()) silence_.arm(guests_.front()->deadline);
}

void SocketListener::drop(Guest& guest) {
  reactor_.unwatch(guest.socket.get());
  std::erase_if(guests_, [&](const auto& entry) { return entry.get() == &guest; });
}

void SocketListener::turn_away(int socket, Refusal reason, const std::string& peer, std::string_view why) {
  if (complaints_.allow(reactor_.now()))
    reactor_.logger().warning("a connection of {} to {} is refused: {}", peer, socket_.path(), why);
  RefuseMessage message;
  message.reason = reason;
  message.data_size = put_bytes(message.data, why.data(), why.size());
  [[maybe_unused]] const Sent sent = send(socket, message);
}

void SocketListener::on_guest(Guest& guest) {
  Packet packet;
  switch (receive(guest.socket.get(), packet)) {
    case Received::nothing: return;
    case Received::closed: return drop(guest);  // a probe that wanted to know whether somebody listens
    case Received::violation:
    case Received::packet: break;
  }
  const auto hello = packet.as<HelloMessage>();
  const auto refuse = [&](std::string_view why) {
    turn_away(guest.socket.get(), Refusal::malformed, guest.peer, why);
    drop(guest);
  };
  if (!hello) return refuse(fmt::format("its first message is no hello of protocol version {}", kVersion));
  if (hello->private_size > kConnectDataMax || hello->receive_size == 0 || hello->receive_size > kReceiveSizeMax)
    return refuse("its hello is malformed");
  auto ring = RingMemory::attach({hello->slots_to_acceptor, hello->slots_to_connector}, packet.descriptor);
  if (!ring) return refuse(ring.error().message());

  // Given up meanwhile: nobody waits for an answer.
  std::byte next{};
  if (::recv(guest.socket.get(), &next, sizeof next, MSG_PEEK | MSG_DONTWAIT) == 0) return drop(guest);

  reactor_.unwatch(guest.socket.get());
  auto knock = std::make_unique<Knock>(
      Knock::Taken{std::move(guest.socket), std::move(*ring), hello->receive_size, guest.trusted}, *hello, guest.peer,
      unanswered_);
  drop(guest);
  handler_.on_request(std::move(knock));  // may destroy this listener
}

}  // namespace rbt::transport::shm
