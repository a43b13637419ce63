#include "initiator/controller.h"

#include <fmt/format.h>

#include <algorithm>

#include "initiator/authentication.h"
#include "initiator/namespace_list.h"

namespace rbt::initiator {

namespace {

constexpr Duration kStatusPollInterval = std::chrono::milliseconds(10);
constexpr std::uint8_t kCnsController = 0x01;
constexpr std::uint8_t kCnsCommandSetController = 0x06;

Error connect_error(const nvme::CompletionQueueEntry& answer, const Association& association) {
  using nvme::StatusCode;
  const StatusCode code = answer.status().code();
  const auto refused = [&](ErrorKind kind, std::string why) {
    return Error(kind, fmt::format("Connect was refused: {} ({})", why, nvme::describe(answer.status())));
  };
  if (code == StatusCode::connect_invalid_parameters) {
    const std::string where = nvme::describe_invalid_connect(answer.dw0());
    return refused(ErrorKind::not_found, fmt::format("the target objects to {}; subsystem \"{}\", host \"{}\"", where,
                                                     association.subsystem.text(), association.host_nqn.text()));
  }
  if (code == StatusCode::connect_invalid_host)
    return refused(ErrorKind::permission,
                   fmt::format("host \"{}\" is not allowed to use subsystem \"{}\"; allow it at the target",
                               association.host_nqn.text(), association.subsystem.text()));
  if (code == StatusCode::connect_controller_busy)
    return refused(ErrorKind::in_use, "the controller is busy, or already has this queue; try again in a moment");
  if (code == StatusCode::command_sequence_error)  // what Linux and rbt-target answer for a queue that exists
    return refused(
        ErrorKind::in_use,
        "the controller still has this queue, from a connection that it has not noticed to be lost; try again, "
        "or connect a new session");
  if (code == StatusCode::connect_restart_discovery || code == StatusCode::discover_restart)
    return refused(ErrorKind::not_found, "the target wants discovery to be run again");
  if (code == StatusCode::connect_incompatible_format)
    return refused(ErrorKind::protocol, "the target does not know record format 0");
  if (code == StatusCode::authentication_required)
    return refused(ErrorKind::unsupported, "the target demands authentication in another way than by DH-HMAC-CHAP");
  return status_error("Connect", answer.status());
}

// The URI's, else the options'.
Result<void> read_secret(const Uri& uri, std::string_view key, const auth::SharedSecret& option,
                         auth::SharedSecret& out) {
  out = option;
  const auto source = uri.option(key);
  if (!source) return {};
  auto secret = auth::Secret::load(std::string(*source));
  if (!secret) return failure(std::move(secret.error()));
  out = std::move(*secret);
  return {};
}

}  // namespace

Result<void> authenticate_queue(Queue& queue, const Association& association, Instant deadline) {
  return authenticate({association.host_nqn, association.subsystem, association.secret, association.controller_secret},
                      [&](const nvme::SubmissionQueueEntry& entry, std::span<std::byte> data) {
                        return call(queue, entry, data, deadline);
                      });
}

Result<Association> make_association(const Uri& uri, nvme::Nqn subsystem, const HostOptions& host, Random& random) {
  std::optional<nvme::HostId> id = host.id;
  std::optional<nvme::Nqn> nqn = host.nqn;
  if (const auto text = uri.option("hostid")) {
    const auto uuid = nvme::Uuid::parse(*text);
    if (!uuid) return failure(Error(uuid.error()).within(fmt::format("hostid in {}", uri.to_string())));
    id = nvme::HostId(*uuid);
  }
  if (const auto text = uri.option("hostnqn")) {
    auto parsed = nvme::Nqn::parse(*text);
    if (!parsed) return failure(std::move(parsed.error()).within(fmt::format("hostnqn in {}", uri.to_string())));
    nqn = std::move(*parsed);
  }
  if (id && id->is_zero())
    return failure(ErrorKind::invalid_argument, "the host identifier is all zero; any other UUID will do");
  if (!id) id = nvme::HostId(nvme::Uuid::generate(random));
  if (!nqn) nqn = nvme::Nqn::from_uuid(nvme::Uuid(id->bytes()));
  Association association{.uri = uri, .subsystem = std::move(subsystem), .host_nqn = std::move(*nqn), .host_id = *id};
  if (auto read = read_secret(uri, "secret-file", host.secret, association.secret); !read)
    return failure(std::move(read.error()));
  if (auto read = read_secret(uri, "ctrl-secret-file", host.controller_secret, association.controller_secret); !read)
    return failure(std::move(read.error()));
  if (association.controller_secret != nullptr && association.secret == nullptr)
    return failure(
        ErrorKind::invalid_argument,
        "a controller secret is given, and no secret of the host's: a subsystem proves itself only to who does");
  return association;
}

Result<nvme::ConnectResponse> connect_queue(Queue& queue, const Association& association, Duration keep_alive,
                                            Instant deadline) {
  const nvme::ConnectRequest request{.qid = queue.qid(),
                                     .queue_entries = queue.depth() + 1,
                                     .keep_alive = std::chrono::ceil<std::chrono::milliseconds>(keep_alive),
                                     .host_id = association.host_id,
                                     .cntlid = association.cntlid,
                                     .subsystem_nqn = association.subsystem,
                                     .host_nqn = association.host_nqn};
  nvmf_connect_data data = nvme::encode_connect_data(request);
  auto answer = call(queue, nvme::encode_connect(request), bytes_of(data), deadline);
  if (!answer) return failure(std::move(answer.error()));
  if (!answer->status().ok()) return failure(connect_error(*answer, association));
  queue.set_created();
  const auto response = nvme::parse_connect_response(answer->dw0());
  if (response.secure_channel_required)
    return failure(ErrorKind::unsupported,
                   "the target demands a secure channel after authentication (ASCR), which RDMA does not have");
  // Who wants to know whom it talks to asks for it, whether the target does or not.
  if (response.authentication_required || association.controller_secret != nullptr)
    if (auto proved = authenticate_queue(queue, association, deadline); !proved)
      return failure(std::move(proved.error()));
  return response;
}

Controller::Controller(transport::Fabric& fabric, transport::Reactor& reactor, const Association& association,
                       const ControllerOptions& options)
    : fabric_(fabric),
      association_(association),
      options_(options),
      admin_(fabric, reactor, {.uri = association.uri, .owner = options.owner}) {}

// ---- the way up, in the order of the Linux host (nvme_rdma_configure_admin_queue, nvme_enable_ctrl, nvme_init_identify)

Result<std::unique_ptr<Controller>> Controller::connect(transport::Fabric& fabric, transport::Reactor& reactor,
                                                        const Association& association,
                                                        const ControllerOptions& options, Instant deadline) {
  std::unique_ptr<Controller> self(new Controller(fabric, reactor, association, options));
  const bool hurried = options.reach_timeout != Duration::zero();
  auto up = self->admin_.open(hurried ? std::min(deadline, reactor.clock().now() + options.reach_timeout) : deadline);
  if (!up) return failure(std::move(up.error()));
  const std::string where = fmt::format("connecting {}", self->admin_.label());

  auto response = connect_queue(self->admin_, self->association_, options.keep_alive, deadline);
  if (!response) return failure(std::move(response.error()).within(where));
  if (response->cntlid > nvme::kCntlidMax)
    return failure(ErrorKind::protocol, fmt::format("{}: Connect answered controller id {:#06x}; ffefh is the largest",
                                                    where, response->cntlid.value()));
  self->association_.cntlid = response->cntlid;

  up = self->read_capabilities(deadline).and_then([&] { return self->enable(deadline); }).and_then([&] {
    return self->identify(deadline);
  });
  if (!up) return failure(std::move(up.error()).within(where));
  return self;
}

Result<std::uint64_t> Controller::property(nvme::Property which, std::string_view what, Instant deadline) {
  const auto offset = static_cast<std::uint32_t>(which);
  const nvme::PropertySize size = *nvme::property_size(offset);
  auto answer = call_ok(admin_, what, nvme::encode_property_get(offset, size), {}, deadline);
  if (!answer) return failure(std::move(answer.error()));
  return size == nvme::PropertySize::eight_bytes ? answer->result.get() : answer->dw0();
}

Result<void> Controller::set_configuration(nvme::Configuration configuration, std::string_view what, Instant deadline) {
  auto answer = call_ok(admin_, what,
                        nvme::encode_property_set({.offset = static_cast<std::uint32_t>(nvme::Property::configuration),
                                                   .size = nvme::PropertySize::four_bytes,
                                                   .value = configuration.raw}),
                        {}, deadline);
  if (!answer) return failure(std::move(answer.error()));
  configuration_ = configuration;
  return {};
}

Result<void> Controller::read_capabilities(Instant deadline) {
  auto raw = property(nvme::Property::capabilities, "reading CAP", deadline);
  if (!raw) return failure(std::move(raw.error()));
  capabilities_ = {*raw};
  if (capabilities_.queue_entries_max() < 2)
    return failure(ErrorKind::protocol, "CAP.MQES is 0; a queue has at least two entries (1)");
  if (options_.kind == ControllerKind::io && !capabilities_.supports_nvm_command_set() &&
      !capabilities_.supports_command_set_selection())
    return failure(ErrorKind::unsupported,
                   fmt::format("CAP is {:#x}: the controller does not have the NVM command set", *raw));
  return {};
}

Result<void> Controller::enable(Instant deadline) {
  // Command set 0 is NVM; a controller that has only "all its command sets" (CSS bit 6 of CAP) needs 6.
  const unsigned command_set =
      capabilities_.supports_nvm_command_set() || options_.kind == ControllerKind::discovery ? 0 : 6;
  const auto configuration =
      nvme::Configuration{}.with_entry_size_shifts(6, 4).with_command_set(command_set).with_enabled(true);
  auto set = set_configuration(configuration, "enabling the controller", deadline);
  if (!set) return set;
  const Duration patience =
      std::chrono::milliseconds(500) * std::max(capabilities_.timeout_half_seconds(), std::uint32_t{1});
  const Instant give_up = std::min(deadline, admin_.reactor().clock().now() + patience);
  while (true) {
    auto raw = property(nvme::Property::status, "waiting for the controller to be ready", deadline);
    if (!raw) return failure(std::move(raw.error()));
    const nvme::ControllerStatus status{static_cast<std::uint32_t>(*raw)};
    if (status.fatal())
      return failure(ErrorKind::io, "the controller reports a fatal status (CSTS.CFS) instead of becoming ready");
    if (status.ready()) return {};
    if (admin_.reactor().clock().now() >= give_up)
      return failure(ErrorKind::timed_out, "the controller did not become ready (CSTS.RDY) in its time (CAP.TO)");
    pause(kStatusPollInterval);
  }
}

Result<void> Controller::identify(Instant deadline) {
  auto version = property(nvme::Property::version, "reading VS", deadline);
  if (!version) return failure(std::move(version.error()));
  version_ = {static_cast<std::uint32_t>(*version)};
  nvme_id_ctrl data{};
  auto answer =
      call_ok(admin_, "Identify Controller", nvme::encode_identify({.cns = kCnsController}), bytes_of(data), deadline);
  if (!answer) return failure(std::move(answer.error()));
  auto info = parse_identify_controller(
      data, {.kind = options_.kind,
             .capabilities = capabilities_,
             .version = version_,
             .cntlid = association_.cntlid,
             .subsystem_nqn = association_.subsystem.text(),
             .keep_alive_wanted = options_.keep_alive != Duration::zero() && options_.kind == ControllerKind::io,
             .in_capsule_preferred = fabric_.in_capsule_data_preferred()});
  if (!info) return failure(std::move(info.error()));
  info_ = std::move(*info);
  info_.transfer_max =
      std::min(info_.transfer_max,
               Bytes(std::max<std::uint64_t>(admin_.limits().message_max, BlockShift::of(4096)->block_size())));
  if (options_.kind == ControllerKind::discovery) return {};
  // Optional, as CNS 06h came with Base 2.0: whoever does not know it has no limits to tell.
  nvme_id_ctrl_nvm limits{};
  answer = call(admin_, nvme::encode_identify({.cns = kCnsCommandSetController}), bytes_of(limits), deadline);
  if (!answer) return failure(std::move(answer.error()));
  if (answer->status().ok()) limits_ = parse_command_limits(limits, capabilities_);
  return {};
}

void Controller::pause(Duration pause) {
  transport::Reactor& reactor = admin_.reactor();
  (void)reactor.run_until([this] { return !admin_.live(); }, reactor.clock().now() + pause);
}

// ---- what one may ask of it

Result<std::uint32_t> Controller::request_queues(std::uint32_t wished, Instant deadline) {
  const auto entry =
      nvme::encode_set_features({.fid = NVME_FEAT_FID_NUM_QUEUES,
                                 .value = nvme::encode_queue_counts({.submission = wished, .completion = wished})});
  auto answer = call_ok(admin_, "asking for I/O queues", entry, {}, deadline);
  if (!answer) return failure(std::move(answer.error()));
  const auto granted = nvme::parse_queue_counts(answer->dw0());
  if (!granted)
    return failure(ErrorKind::protocol,
                   fmt::format("asking for I/O queues: the answer {:#x} is out of range", answer->dw0()));
  return std::min({wished, granted->submission, granted->completion});
}

Result<std::vector<Namespace>> Controller::list_namespaces(Instant deadline) {
  return initiator::list_namespaces([&](const nvme::SubmissionQueueEntry& command,
                                        std::span<std::byte> data) { return call(admin_, command, data, deadline); },
                                    info_, admin_.reactor().logger(), admin_.label());
}

Result<void> Controller::read_log(std::uint8_t lid, Bytes offset, std::span<std::byte> out, Instant deadline) {
  const auto entry = nvme::encode_get_log_page({.lid = lid, .offset = offset, .length = Bytes(out.size())});
  auto answer = call_ok(admin_, fmt::format("reading log page {:02x}h", lid), entry, out, deadline);
  if (!answer) return failure(std::move(answer.error()));
  return {};
}

void Controller::shut_down(Instant deadline) {
  if (!admin_.live()) return;
  auto done =
      set_configuration(configuration_.with_shutdown(nvme::Shutdown::normal), "shutting the controller down", deadline);
  while (done) {
    auto raw = property(nvme::Property::status, "waiting for the shutdown", deadline);
    if (!raw) {
      done = failure(std::move(raw.error()));
      break;
    }
    if (nvme::ControllerStatus{static_cast<std::uint32_t>(*raw)}.shutdown() == nvme::ShutdownStatus::complete) return;
    if (admin_.reactor().clock().now() >= deadline) {
      done = failure(ErrorKind::timed_out, "the controller did not complete its shutdown (CSTS.SHST) in time");
      break;
    }
    pause(kStatusPollInterval);
  }
  admin_.reactor().logger().warning("{}: {}; disconnecting all the same", admin_.label(), done.error().message());
}

}  // namespace rbt::initiator
