#include "initiator/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>

#include "common/check.h"
#include "initiator/authentication.h"
#include "initiator/command.h"
#include "initiator/namespace_list.h"

namespace rbt::initiator {

namespace {

constexpr Duration kShutdownBound = std::chrono::seconds(2);
constexpr Duration kEventPause =
    std::chrono::milliseconds(10);  // a controller that floods us with events is slowed to this
constexpr std::uint32_t kEventRequestsMax = 4;
// OAES and feature 0Bh.
constexpr std::uint32_t kNamespaceNotice = NVME_CTRL_OAES_NA;
constexpr std::uint32_t kAccessNotice = NVME_CTRL_OAES_ANA;
constexpr std::uint32_t kIoQueuesMax = 1024;
constexpr std::uint32_t kKeepAliveSecondsMax = 0xffffffff / 1000;  // KATO is 32 bits of milliseconds

// How much of a log to read so that reading acknowledges its event; targets insist on some of these lengths.
std::size_t log_bytes(std::uint8_t lid) noexcept {
  switch (lid) {
    case NVME_LOG_LID_ERROR: return 64;
    case NVME_LOG_LID_CHANGED_NS: return 4096;
    case NVME_LOG_LID_DISCOVER: return 1024;
    default: return 512;
  }
}

Result<std::optional<std::uint32_t>> number_option(const Uri& uri, std::string_view key, std::uint32_t most) {
  const auto text = uri.option(key);
  if (!text) return std::nullopt;
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size() || value < 1 || value > most)
    return rbt::failure(ErrorKind::invalid_argument, fmt::format("{}={} in {}: a number from 1 to {} is allowed", key,
                                                                 *text, uri.to_string(), most));
  return value;
}

}  // namespace

Session::Implementation::Implementation(const Environment& environment, const Uri& uri, const SessionOptions& options)
    : fabric_(environment.fabric),
      clock_(environment.clock),
      logger_(environment.logger),
      uri_(uri),
      options_(options),
      registrations_(environment.monitor, cache_options(environment, options.buffer_cache), environment.logger) {}

Session::Implementation::~Implementation() {
  {
    const std::lock_guard lock(mutex_);
    check(open_queues_.empty(), "a session's queue pairs are destroyed before it");
  }
  check(registrations_.empty(), "a session's registered buffers are destroyed before it");
  close();
}

// ---- connect

Result<void> Session::Implementation::connect(Random& random) {
  const Instant deadline = clock_.now() + options_.connect_timeout;
  auto options = apply_uri_options();
  if (!options) return options;
  if (!uri_.nqn)
    return rbt::failure(ErrorKind::invalid_argument,
                        fmt::format("{} names no subsystem; `rbt-connect discover {}` lists those there are",
                                    uri_.to_string(), uri_.to_string()));
  auto association = make_association(uri_, *uri_.nqn, options_.host, random);
  if (!association) return rbt::failure(std::move(association.error()));

  reactor_ = options_.management;
  if (reactor_ == nullptr) {
    auto created = transport::Reactor::create(clock_, logger_);
    if (!created) return rbt::failure(std::move(created.error()));
    own_reactor_ = std::move(*created);
    reactor_ = own_reactor_.get();
  }
  auto controller = Controller::connect(fabric_, *reactor_, *association,
                                        {.keep_alive = options_.keep_alive,
                                         .command_timeout = options_.command_timeout,
                                         .reach_timeout = options_.reach_timeout,
                                         .owner = this},
                                        deadline);
  if (!controller) return rbt::failure(std::move(controller.error()));
  controller_ = std::move(*controller);
  auto ready = set_up(deadline);
  if (!ready)
    return rbt::failure(std::move(ready.error()).within(fmt::format("connecting {}", controller_->admin().label())));
  if (own_reactor_) start_thread();
  return {};
}

Result<void> Session::Implementation::apply_uri_options() {
  auto queues = number_option(uri_, "queues", kIoQueuesMax);
  if (!queues) return rbt::failure(std::move(queues.error()));
  options_.io_queues = queues->value_or(options_.io_queues);
  auto depth = number_option(uri_, "depth", Queue::kDepthMax);
  if (!depth) return rbt::failure(std::move(depth.error()));
  depth_ = *depth;
  auto keep_alive = number_option(uri_, "keep-alive", kKeepAliveSecondsMax);
  if (!keep_alive) return rbt::failure(std::move(keep_alive.error()));
  if (*keep_alive) options_.keep_alive = std::chrono::seconds(**keep_alive);
  if (options_.io_queues > kIoQueuesMax)
    return rbt::failure(ErrorKind::invalid_argument, fmt::format("{} I/O queues were asked for; 0 to {} are allowed",
                                                                 options_.io_queues, kIoQueuesMax));
  const auto kato_ms = std::chrono::ceil<std::chrono::milliseconds>(options_.keep_alive).count();
  if (kato_ms < 0 || kato_ms > 0xffffffff)
    return rbt::failure(ErrorKind::invalid_argument,
                        fmt::format("a keep-alive of {} ms: 0 to 4294967295 are allowed", kato_ms));
  return {};
}

// What follows Identify Controller, in the Linux host's order.
Result<void> Session::Implementation::set_up(Instant deadline) {
  start_keep_alive();
  if (options_.io_queues != 0) {
    auto granted = controller_->request_queues(options_.io_queues, deadline);
    if (!granted) return rbt::failure(std::move(granted.error()));
    io_queues_ = *granted;
    for (std::uint32_t qid = 1; qid <= io_queues_; ++qid)
      free_qids_.push_back(Qid(static_cast<std::uint16_t>(qid)));
  }
  start_events(deadline);
  auto namespaces = controller_->list_namespaces(deadline);
  if (!namespaces) return rbt::failure(std::move(namespaces.error()));
  namespaces_ = std::move(*namespaces);
  return registrations_.add_domain(controller_->admin().domain());
}

void Session::Implementation::start_thread() {
  thread_ = std::thread([this] { (void)reactor_->run_until([this] { return stop_; }, Instant::max()); });
}

void Session::Implementation::stop_thread() {
  if (!thread_.joinable()) return;
  reactor_->post([this] { stop_ = true; });
  thread_.join();
}

// ---- keep-alive (Base 2.0, 3.9): half of KATO between two, and KATO for each to be answered, as the Linux host does

void Session::Implementation::start_keep_alive() {
  if (options_.keep_alive == Duration::zero()) return;
  keep_alive_ = std::make_unique<Call>(controller_->admin());
  keep_alive_timer_ = std::make_unique<transport::Timer>(reactor_->timers(), [this] { send_keep_alive(); });
  keep_alive_timer_->arm(clock_.now() + options_.keep_alive / 2);
}

void Session::Implementation::send_keep_alive() {
  if (ending() || !controller_->admin().live()) return;
  const Instant now = reactor_->now();
  keep_alive_timer_->arm(now + options_.keep_alive / 2);
  if (keep_alive_->running()) return;  // its own deadline judges it
  auto sent =
      keep_alive_->start(nvme::encode_plain(nvme::AdminOpcode::keep_alive), {}, now + options_.keep_alive, [this] {
        const auto answer = keep_alive_->result();
        if (answer && !answer->status().ok())
          controller_->admin().fail(Outcome::disconnected, status_error("Keep Alive", answer->status()));
      });
  if (!sent) logger_.warning("{}: keep-alive not sent: {}", controller_->admin().label(), sent.error().message());
}

// ---- asynchronous events (Base 2.0, 5.2)

void Session::Implementation::start_events(Instant deadline) {
  const std::uint32_t wanted = controller_->info().async_events & (kNamespaceNotice | kAccessNotice);
  if (wanted != 0) {
    const auto answer =
        call(controller_->admin(), nvme::encode_set_features({.fid = NVME_FEAT_FID_ASYNC_EVENT, .value = wanted}), {},
             deadline);
    if (answer && !answer->status().ok())
      logger_.info("{}: {}; changes of namespaces and of access to them will not be noticed",
                   controller_->admin().label(), status_error("enabling events", answer->status()).message());
  }
  const std::uint32_t count = std::min(controller_->info().async_events_max, kEventRequestsMax);
  for (std::uint32_t i = 0; i < count; ++i) {
    events_.push_back(
        std::make_unique<EventSlot>(controller_->admin(), *reactor_, [this, i] { request_event(*events_[i]); }));
    request_event(*events_.back());
  }
}

void Session::Implementation::request_event(EventSlot& slot) {
  if (ending() || !controller_->admin().live()) return;
  auto sent = slot.request.start(nvme::encode_plain(nvme::AdminOpcode::async_event_request), {}, Instant::max(),
                                 [this, &slot] { on_event(slot); });
  if (!sent) slot.rearm.arm(reactor_->now() + kEventPause);
}

void Session::Implementation::on_event(EventSlot& slot) {
  const auto answer = slot.request.result();
  if (!answer || ending()) return;
  if (!answer->status().ok()) {  // more requests than it holds: one less then
    logger_.info("{}: {}", controller_->admin().label(),
                 status_error("Asynchronous Event Request", answer->status()).message());
    return;
  }
  const nvme::AsyncEvent event = nvme::parse_async_event(answer->dw0());
  const auto deliver = [this, &slot, event] {
    if (ending()) return;
    if (options_.on_event) options_.on_event(event);
    slot.rearm.arm(reactor_->now() + kEventPause);
  };
  const auto page = std::span(slot.page).first(log_bytes(event.lid));
  auto reading = slot.log.start(
      nvme::encode_get_log_page({.nsid = nvme::kNsidAll, .lid = event.lid, .length = Bytes(page.size())}), page,
      clock_.now() + options_.command_timeout, deliver);
  if (!reading) deliver();
}

// ---- the association is over

void Session::Implementation::on_queue_closed(Outcome outcome) {
  if (controller_ == nullptr || outcome == Outcome::aborted || ending()) return;  // null: connect() says what happened
  const Error why = *controller_->admin().failure();
  {
    const std::lock_guard lock(mutex_);
    failure_ = why;
  }
  state_.store(SessionState::lost, std::memory_order_release);
  fail_queue_pairs(why);
  if (options_.on_lost) options_.on_lost(why);
}

void Session::Implementation::fail_queue_pairs(const Error& why) {
  const std::lock_guard lock(mutex_);  // a reactor in the list exists: its queue pair leaves the list before it can go
  for (const OpenQueue& open : open_queues_)
    open.reactor->post([handle = open.handle, why] {
      if (handle->queue != nullptr)
        handle->queue->fail(Outcome::disconnected, Error(why).within("the session is lost"));
    });
}

void Session::Implementation::close() {
  stop_thread();
  const bool was_live = state() == SessionState::live;
  state_.store(SessionState::closed, std::memory_order_release);
  if (keep_alive_timer_) keep_alive_timer_->cancel();
  for (const auto& slot : events_)
    slot->rearm.cancel();
  if (!controller_) return;
  if (was_live && controller_->admin().live()) controller_->shut_down(clock_.now() + kShutdownBound);
  controller_->admin().close();
}

std::optional<Error> Session::Implementation::failure_text() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

// ---- queue pairs

Result<Qid> Session::Implementation::claim_qid(transport::Reactor& reactor, std::shared_ptr<QueueHandle> handle) {
  const std::lock_guard lock(mutex_);
  if (free_qids_.empty())
    return rbt::failure(ErrorKind::resource,
                        fmt::format("all {} I/O queues that the controller granted are open; ask for more with "
                                    "SessionOptions::io_queues or `queues=` in the URI",
                                    io_queues_));
  const Qid qid = free_qids_.front();
  free_qids_.pop_front();
  open_queues_.push_back({qid, &reactor, std::move(handle)});
  return qid;
}

void Session::Implementation::release_qid(Qid qid) {
  const std::lock_guard lock(mutex_);
  std::erase_if(open_queues_, [qid](const OpenQueue& open) { return open.qid == qid; });
  free_qids_.push_back(qid);
}

Result<std::unique_ptr<QueuePair>> Session::Implementation::open_queue_pair(transport::Reactor& reactor,
                                                                            const QueuePairOptions& options) {
  const Instant deadline = clock_.now() + options_.connect_timeout;
  const std::uint32_t wished = depth_.value_or(options.depth);
  if (wished < 1 || wished > Queue::kDepthMax)
    return rbt::failure(ErrorKind::invalid_argument,
                        fmt::format("a queue depth of {}: 1 to {} are allowed", wished, Queue::kDepthMax));
  if (state() != SessionState::live)
    return rbt::failure(ErrorKind::disconnected, fmt::format("opening an I/O queue: the session is {}", name(state())));
  auto handle = std::make_shared<QueueHandle>();
  const auto qid = claim_qid(reactor, handle);
  if (!qid) return rbt::failure(Error(qid.error()));

  const ControllerInfo& info = controller_->info();
  std::uint32_t depth = std::min(wished, info.queue_entries_max - 1);
  if (info.commands_max != 0) depth = std::min(depth, info.commands_max);
  auto queue_pair = std::make_unique<QueuePair::Implementation>(
      fabric_, reactor,
      QueueOptions{.uri = uri_,
                   .qid = *qid,
                   .cntlid = controller_->association().cntlid,
                   .depth = depth,
                   .pool = options.bounce},
      QueuePairContext{registrations_, controller_->limits(), info.in_capsule_max, options_.command_timeout});
  queue_pair->on_destroyed = [this, handle, qid = *qid] {
    handle->queue = nullptr;
    release_qid(qid);
  };
  queue_pair->on_lost = options.on_lost;
  Queue& queue = queue_pair->queue();
  auto opened = queue.open(deadline);
  if (!opened) return rbt::failure(std::move(opened.error()));
  handle->queue = &queue;
  auto connected = connect_queue(queue, controller_->association(), Duration::zero(), deadline);
  opened = connected ? registrations_.add_domain(queue.domain()) : rbt::failure(std::move(connected.error()));
  if (opened) opened = queue_pair->prepare(options.buffers);
  if (!opened) return rbt::failure(std::move(opened.error()).within(fmt::format("connecting {}", queue.label())));
  return std::unique_ptr<QueuePair>(new QueuePair(std::move(queue_pair)));
}

// ---- admin commands for whoever asks

Result<nvme::CompletionQueueEntry> Session::Implementation::admin(const nvme::SubmissionQueueEntry& command,
                                                                  std::span<std::byte> data) {
  if (data.size() > kCallDataMax)
    return rbt::failure(
        ErrorKind::invalid_argument,
        fmt::format("an admin command with {} bytes of data; {} are possible", data.size(), kCallDataMax));
  if (state() == SessionState::closed)
    return rbt::failure(ErrorKind::disconnected, "an admin command on a closed session");
  const Instant deadline = clock_.now() + options_.command_timeout;
  if (!thread_.joinable()) return call(controller_->admin(), command, data, deadline);
  if (thread_.get_id() == std::this_thread::get_id())
    return rbt::failure(ErrorKind::invalid_argument,
                        "an admin command from a callback of the session: it would wait for itself");

  struct Waiting {
    std::mutex mutex;
    std::condition_variable wake;
    std::optional<Result<nvme::CompletionQueueEntry>> result;
    std::unique_ptr<Call> one;  // the management thread's
  } waiting;
  const auto finish = [&waiting](Result<nvme::CompletionQueueEntry> result) {
    const std::lock_guard lock(waiting.mutex);
    waiting.result = std::move(result);
    waiting.wake.notify_one();
  };
  reactor_->post([&, this] {
    waiting.one = std::make_unique<Call>(controller_->admin());
    auto started = waiting.one->start(command, data, deadline, [&] { finish(waiting.one->result()); });
    if (!started) finish(rbt::failure(std::move(started.error())));
  });
  std::unique_lock lock(waiting.mutex);  // the queue ends every command at its deadline: this ends, too
  waiting.wake.wait(lock, [&waiting] { return waiting.result.has_value(); });
  return std::move(*waiting.result);
}

Result<void> Session::Implementation::authenticate() {
  const Association& who = association();
  auto done = initiator::authenticate(
      {who.host_nqn, who.subsystem, who.secret, who.controller_secret},
      [this](const nvme::SubmissionQueueEntry& entry, std::span<std::byte> data) { return admin(entry, data); });
  if (!done) return rbt::failure(std::move(done.error()).within(controller_->admin().label()));
  return done;
}

Result<void> Session::Implementation::authenticate(Queue& queue) {
  auto done = authenticate_queue(queue, association(), clock_.now() + options_.command_timeout);
  if (!done) return rbt::failure(std::move(done.error()).within(queue.label()));
  return done;
}

Result<std::vector<Namespace>> Session::Implementation::rescan() {
  auto namespaces = list_namespaces(
      [this](const nvme::SubmissionQueueEntry& command, std::span<std::byte> data) { return admin(command, data); },
      info(), logger_, controller_->admin().label());
  if (!namespaces)
    return rbt::failure(
        std::move(namespaces.error()).within(fmt::format("reading namespaces of {} again", uri_.to_string())));
  return namespaces;
}

Result<std::optional<Namespace>> Session::Implementation::look_at(Nsid nsid) {
  auto found = read_namespace(
      [this](const nvme::SubmissionQueueEntry& command, std::span<std::byte> data) { return admin(command, data); },
      nsid, info(), logger_, controller_->admin().label());
  if (!found)
    return rbt::failure(std::move(found.error())
                            .within(fmt::format("reading namespace {} of {} again", nsid.value(), uri_.to_string())));
  return found;
}

// ---- the public face

std::string_view name(SessionState state) noexcept {
  switch (state) {
    case SessionState::live: return "live";
    case SessionState::lost: return "lost";
    case SessionState::closed: return "closed";
  }
  return "unknown";
}

Session::Session(std::unique_ptr<Implementation> implementation) noexcept
    : implementation_(std::move(implementation)) {}
Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::connect(const Environment& environment, const Uri& uri,
                                                  const SessionOptions& options) {
  auto implementation = std::make_unique<Implementation>(environment, uri, options);
  auto connected = implementation->connect(environment.random);
  if (!connected) return rbt::failure(std::move(connected.error()));
  return std::unique_ptr<Session>(new Session(std::move(implementation)));
}

void Session::close() {
  implementation_->close();
}
SessionState Session::state() const noexcept {
  return implementation_->state();
}
std::optional<Error> Session::failure() const {
  return implementation_->failure_text();
}
const Uri& Session::uri() const noexcept {
  return implementation_->uri();
}
const nvme::Nqn& Session::host_nqn() const noexcept {
  return implementation_->association().host_nqn;
}
const nvme::HostId& Session::host_id() const noexcept {
  return implementation_->association().host_id;
}
const ControllerInfo& Session::controller() const noexcept {
  return implementation_->info();
}
std::span<const Namespace> Session::namespaces() const noexcept {
  return implementation_->namespaces();
}
Duration Session::keep_alive() const noexcept {
  return implementation_->keep_alive();
}
std::uint32_t Session::io_queues() const noexcept {
  return implementation_->io_queues();
}

Result<void> Session::authenticate(QueuePair* queue) {
  return queue != nullptr ? implementation_->authenticate(queue->implementation_->queue())
                          : implementation_->authenticate();
}

Result<std::vector<Namespace>> Session::rescan() {
  return implementation_->rescan();
}

Result<std::optional<Namespace>> Session::look_at(Nsid nsid) {
  return implementation_->look_at(nsid);
}

BufferCacheCounters Session::buffer_cache() const {
  const auto now = implementation_->registrations().counters();
  return {now.registered, now.refused, now.evicted, now.regions, now.bytes};
}

Result<const Namespace*> Session::find(std::optional<Nsid> nsid) const {
  const auto all = namespaces();
  if (!nsid && all.size() == 1) return &all.front();
  for (const Namespace& one : all)
    if (nsid && one.nsid == *nsid) return &one;
  std::string there;
  for (const Namespace& one : all)
    there += fmt::format("{}{}", there.empty() ? "" : ", ", one.nsid.value());
  const std::string list = all.empty() ? "none that can be used" : there;
  if (nsid)
    return rbt::failure(ErrorKind::not_found,
                        fmt::format("{} has no namespace {}; there are: {}", uri().to_string(), nsid->value(), list));
  return rbt::failure(ErrorKind::not_found,
                      fmt::format("{} names no namespace; there are: {}", uri().to_string(), list));
}

Result<std::unique_ptr<QueuePair>> Session::open_queue_pair(transport::Reactor& reactor,
                                                            const QueuePairOptions& options) {
  return implementation_->open_queue_pair(reactor, options);
}

Result<std::unique_ptr<RegisteredBuffer>> Session::register_buffer(const transport::MemorySpan& memory) {
  return initiator::register_buffer(implementation_->registrations(), memory);
}

Result<nvme::CompletionQueueEntry> Session::admin(nvme::SubmissionQueueEntry command, std::span<std::byte> data) {
  return implementation_->admin(command, data);
}

}  // namespace rbt::initiator
