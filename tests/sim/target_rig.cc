#include "tests/sim/target_rig.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>

#include "target/store/spec.h"

namespace rbt::test {

using namespace transport;
using nvme::SubmissionQueueEntry;

nvme::Nqn nqn(const std::string& text) {
  auto parsed = nvme::Nqn::parse(text);
  REQUIRE(parsed.has_value());
  return *parsed;
}

bool NotingLogger::said(const std::string& text) const {
  return std::any_of(messages.begin(), messages.end(),
                     [&](const std::string& message) { return message.find(text) != std::string::npos; });
}

std::vector<std::byte> some_bytes(std::size_t size, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::byte> bytes(size);
  random.fill(bytes);
  return bytes;
}

std::unique_ptr<target::Store> make_ram_store(TargetRig& rig, Random& random) {
  auto store =
      target::make_store("ram:size=1MiB", {.clock = rig.network.clock(), .random = random, .logger = rig.logger});
  REQUIRE(store.has_value());
  return std::move(*store);
}

TargetRig::TargetRig(RigOptions options) : network(options.network, logger) {
  const auto make_reactor = [&] {
    auto reactor = Reactor::create(network.clock(), logger, {.waiter = &network});
    REQUIRE(reactor.has_value());
    return std::move(*reactor);
  };
  target::TargetOptions target_options{.clock = network.clock(), .logger = logger, .random = random};
  for (std::size_t i = 0; i < options.reactors; ++i) {
    target_reactors.push_back(make_reactor());
    target_options.given_reactors.push_back(target_reactors.back().get());
    network.add(*target_reactors.back());
  }
  host_reactor = make_reactor();
  target_options.limits = options.limits;
  auto opened = target::Target::open(target_options);
  if (!opened) FAIL(opened.error().message());
  target = std::move(*opened);
  REQUIRE(target->add_subsystem(nqn(kSubsystem), {.allow_any_host = options.allow_any_host,
                                                  .allowed_hosts = options.allowed_hosts,
                                                  .serial = "SN1",
                                                  .model = "a model"}));
  auto store = target::make_store(options.store, {.clock = network.clock(), .random = random, .logger = logger});
  if (!store) FAIL(store.error().message());
  if (options.gate != nullptr) store = make_gated_store(std::move(*store), *options.gate);
  REQUIRE(target->add_namespace(nqn(kSubsystem), std::move(*store)).has_value());
  if (options.configure) options.configure(*target);
  auto listening = target->listen(network.fabric("target"), address());
  if (!listening) FAIL(listening.error().message());
  REQUIRE(target->start().has_value());
  host = std::make_unique<RawHost>(network.fabric("host"), *host_reactor);
}

TargetRig::~TargetRig() {
  network.faults().heal();
  host->close_all();
  CHECK(run_until([&] { return target->statistics().connections() == 0 && (host_died || host->connections() == 0); }));
  const auto statistics = target->statistics();
  CHECK(statistics.controllers == 0);
  for (const auto& reactor : statistics.reactors)
    CHECK(reactor.buffers_free == reactor.buffers_size);
  target->drain(Duration::zero());
  CHECK(run_until([&] { return target->drained(); }));
  host.reset();
  target.reset();
  for (const auto& reactor : target_reactors)
    network.remove(*reactor);
}

Uri TargetRig::address() const {
  Uri uri;
  uri.scheme = Uri::Scheme::sim;
  uri.host = "target";
  uri.port = 4420;
  return uri;
}

bool TargetRig::run_until(const std::function<bool()>& done, Duration within) {
  const auto look = [&] {
    if (meanwhile) meanwhile();
    return done();
  };
  return network.run_for(within, look) == sim::Network::Outcome::done;
}

void TargetRig::expect(const std::function<bool()>& done, const char* what) {
  INFO(what);
  REQUIRE(run_until(done));
}

RawQueue& TargetRig::queue_up(Qid qid, std::uint32_t entries, Cntlid cntlid) {
  RawQueue& queue = host->connect(address(), qid, entries, cntlid);
  expect([&] { return queue.established || queue.ended(); }, "the connection request is answered");
  REQUIRE(queue.established);
  return queue;
}

std::optional<nvme::CmReject> TargetRig::refusal(std::span<const std::byte> private_data,
                                                 std::uint32_t incoming_reads) {
  RawQueue& queue = host->connect(address(), private_data, incoming_reads);
  expect([&] { return queue.established || queue.ended(); }, "the connection request is answered");
  if (queue.established) return std::nullopt;
  CHECK(queue.reason == Disconnect::Reason::refused);
  return nvme::parse_cm_reject(queue.private_data);
}

Response TargetRig::execute(RawQueue& queue, const SubmissionQueueEntry& sqe, std::span<const std::byte> in_capsule) {
  const std::uint16_t cid = queue.submit(sqe, in_capsule);
  std::optional<Response> response;
  expect([&] { return (response = queue.take(cid)).has_value(); }, "the command is answered");
  return *response;
}

nvme::ConnectRequest TargetRig::connect_request(Qid qid, Cntlid cntlid, std::uint32_t entries) const {
  return {.qid = qid,
          .queue_entries = entries,
          .host_id = nvme::HostId(std::array<std::uint8_t, 16>{1, 2, 3}),
          .cntlid = cntlid,
          .subsystem_nqn = nqn(kSubsystem),
          .host_nqn = nqn(kHost)};
}

Response TargetRig::connect(RawQueue& queue, const nvme::ConnectRequest& request) {
  const auto data = nvme::encode_connect_data(request);
  return connect(queue, nvme::encode_connect(request), std::as_bytes(std::span(&data, 1)));
}

Response TargetRig::connect(RawQueue& queue, SubmissionQueueEntry sqe, std::span<const std::byte> data) {
  HostMemory memory(queue.connection->domain(), std::max<std::size_t>(data.size(), 1));
  std::copy(data.begin(), data.end(), memory.bytes().begin());
  sqe.sgl = memory.keyed(static_cast<std::uint32_t>(data.size()));
  return execute(queue, sqe);
}

std::uint64_t TargetRig::get_property(RawQueue& admin, nvme::Property property) {
  const auto offset = static_cast<std::uint32_t>(property);
  const auto response = execute(admin, nvme::encode_property_get(offset, *nvme::property_size(offset)));
  require_ok(response);
  return response.cqe.result.get();
}

Response TargetRig::set_configuration(RawQueue& admin, nvme::Configuration configuration) {
  return execute(admin, nvme::encode_property_set({.offset = static_cast<std::uint32_t>(nvme::Property::configuration),
                                                   .value = configuration.raw}));
}

Association TargetRig::associate(const std::string& subsystem, std::chrono::milliseconds keep_alive) {
  Association association;
  association.admin = &queue_up(Qid(0));
  auto request = connect_request(Qid(0), nvme::kCntlidDynamic);
  request.subsystem_nqn = nqn(subsystem);
  request.keep_alive = keep_alive;
  const auto response = connect(*association.admin, request);
  require_ok(response);
  association.cntlid = nvme::parse_connect_response(response.cqe.dw0()).cntlid;
  require_ok(set_configuration(*association.admin, enabled()));
  return association;
}

RawQueue& TargetRig::io_queue(const Association& association, Qid qid, std::uint32_t entries,
                              const std::string& subsystem) {
  RawQueue& queue = queue_up(qid, entries, association.cntlid);
  auto request = connect_request(qid, association.cntlid, entries);
  request.subsystem_nqn = nqn(subsystem);
  require_ok(connect(queue, request));
  return queue;
}

Response TargetRig::transfer(RawQueue& queue, SubmissionQueueEntry sqe, HostMemory& memory_, std::uint32_t length) {
  sqe.sgl = memory_.keyed(length);
  return execute(queue, sqe);
}

std::unique_ptr<HostMemory> TargetRig::memory(RawQueue& queue, std::size_t size) {
  return std::make_unique<HostMemory>(queue.connection->domain(), size);
}

void TargetRig::require_ok(const Response& response) {
  INFO(nvme::describe(response.status()));
  REQUIRE(response.status().ok());
}

}  // namespace rbt::test
