// DH-HMAC-CHAP between target and initiator, and the target before hosts that do it wrong.

#include <catch2/catch.hpp>

#include "common/auth/hmac.h"
#include "common/nvme/authentication.h"
#include "tests/sim/initiator_rig.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AuthFault;
using nvme::AuthHash;
using nvme::AuthMessage;
using nvme::DhGroup;
using nvme::FabricsType;
using nvme::StatusCode;
using transport::sim::Operation;
using Bytes_ = std::vector<std::byte>;

namespace {

constexpr const char* kNeighbour = "nqn.2024-01.example:neighbour";

auth::SharedSecret secret(const char* text) {
  return std::move(auth::Secret::parse(text).value());
}
auth::SharedSecret right_secret() {
  return secret("DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:");
}
auth::SharedSecret other_secret() {
  return secret("DHHC-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:");
}

struct AuthOptions {
  std::optional<AuthHash> hash = {};
  std::optional<DhGroup> group = DhGroup::none;
  bool controller_secret = true;
};

/// A host that has to prove itself, and a neighbour that need not.
struct AuthRig : TargetRig {
  explicit AuthRig(const AuthOptions& options = {})
      : TargetRig({.allow_any_host = false,
                   .allowed_hosts = {
                       {.nqn = nqn(kHost),
                        .authentication = {.secret = right_secret(),
                                           .controller_secret = options.controller_secret ? other_secret() : nullptr,
                                           .hash = options.hash,
                                           .group = options.group}},
                       {.nqn = nqn(kNeighbour)}}}) {
    uri = address();
    uri.nqn = nqn(kSubsystem);
  }
  /// The initiator, on the host's machine, with these secrets.
  std::unique_ptr<Host> make_host(auth::SharedSecret mine, auth::SharedSecret theirs) {
    auto made = std::make_unique<Host>(network);
    made->options.host = {.nqn = nqn(kHost), .secret = std::move(mine), .controller_secret = std::move(theirs)};
    return made;
  }
  /// A neighbour's queue, which does its work whatever becomes of others.
  struct Neighbour {
    Association association;
    RawQueue* io = nullptr;
    std::unique_ptr<HostMemory> data;
  };
  Neighbour neighbour() {
    Neighbour one;
    auto request = connect_request(Qid(0), nvme::kCntlidDynamic);
    request.host_nqn = nqn(kNeighbour);
    one.association.admin = &queue_up(Qid(0));
    const auto response = connect(*one.association.admin, request);
    require_ok(response);
    const auto connected = nvme::parse_connect_response(response.cqe.dw0());
    CHECK_FALSE(connected.authentication_required);
    require_ok(set_configuration(*one.association.admin, enabled()));
    one.io = &queue_up(Qid(1), 32, connected.cntlid);
    request = connect_request(Qid(1), connected.cntlid);
    request.host_nqn = nqn(kNeighbour);
    require_ok(connect(*one.io, request));
    one.data = memory(*one.io, 512);
    return one;
  }
  void expect_untouched(const Neighbour& one) {
    CHECK_FALSE(one.association.admin->ended());
    auto sqe =
        nvme::encode_block_command(nvme::IoOpcode::write, {.nsid = Nsid(1), .first = Lba(0), .count = Blocks(1)});
    sqe.sgl = one.data->keyed(512);
    require_ok(execute(*one.io, sqe));
  }

  // A raw host that speaks the protocol.
  RawQueue& joined(Qid qid = Qid(0)) {
    RawQueue& queue = queue_up(qid);
    const auto response = connect(queue, connect_request(qid, nvme::kCntlidDynamic));
    require_ok(response);
    CHECK(nvme::parse_connect_response(response.cqe.dw0()).authentication_required);
    return queue;
  }
  Response send(RawQueue& queue, std::span<const std::byte> message) {
    auto data = memory(queue, std::max<std::size_t>(message.size(), 1));
    std::copy(message.begin(), message.end(), data->bytes().begin());
    auto sqe = nvme::encode_auth_command(FabricsType::authentication_send, static_cast<std::uint32_t>(message.size()));
    return transfer(queue, sqe, *data, static_cast<std::uint32_t>(message.size()));
  }
  Response receive(RawQueue& queue, Bytes_& message, std::uint32_t size = 4096) {
    auto data = memory(queue, size);
    auto sqe = nvme::encode_auth_command(FabricsType::authentication_receive, size);
    const auto response = transfer(queue, sqe, *data, size);
    message.assign(data->bytes().begin(), data->bytes().end());
    return response;
  }
  /// What comes instead of a success, and the end of the connection soon after.
  void expect_failure(RawQueue& queue, AuthFault fault) {
    Bytes_ message;
    require_ok(receive(queue, message));
    CHECK(nvme::parse_auth_header(message)->message == AuthMessage::failure1);
    CHECK(name(nvme::parse_auth_failure(message).fault) == name(fault));
    if (!queue.ended())
      CHECK(execute(queue, nvme::encode_property_get(0x14, nvme::PropertySize::four_bytes)).code() ==
            StatusCode::authentication_required);
    expect([&] { return queue.ended(); }, "the connection is closed");
  }
  Bytes_ negotiate(std::uint16_t transaction = 7, std::uint8_t hashes = 0b1110, std::uint8_t groups = 0b111111) {
    return encoded(nvme::AuthNegotiate{.transaction = transaction, .hashes = hashes, .groups = groups});
  }
  template <typename... Arguments>
  static Bytes_ encoded(const Arguments&... arguments) {
    Bytes_ out(nvme::kAuthBytesMax);
    out.resize(encode(out, arguments...));
    REQUIRE_FALSE(out.empty());
    return out;
  }
  /// The right answer to a challenge of the null group.
  Bytes_ reply_to(const Bytes_& message, const auth::SharedSecret& with, std::span<const std::byte> c2 = {},
                  std::uint16_t transaction = 7) {
    const auto challenge = nvme::parse_auth_challenge(message);
    REQUIRE(challenge.has_value());
    const auto key = with->key_for(nqn(kHost));
    const auto answer = auth::respond(auth::Role::host,
                                      {.hash = challenge->hash,
                                       .transaction = transaction,
                                       .sequence = challenge->sequence,
                                       .challenge = challenge->challenge,
                                       .host_nqn = kHost,
                                       .subsystem_nqn = kSubsystem},
                                      key->bytes());
    return encoded(nvme::AuthReply{
        .transaction = transaction, .sequence = c2.empty() ? 0u : 5u, .response = answer->bytes(), .challenge = c2});
  }
  /// As far as the challenge.
  Bytes_ challenged(RawQueue& queue) {
    require_ok(send(queue, negotiate()));
    Bytes_ message;
    require_ok(receive(queue, message));
    return message;
  }
  void prove(RawQueue& queue) {
    require_ok(send(queue, reply_to(challenged(queue), right_secret())));
    Bytes_ message;
    require_ok(receive(queue, message));
    REQUIRE(nvme::parse_auth_header(message)->message == AuthMessage::success1);
  }
  bool answers(RawQueue& queue) {
    return execute(queue, nvme::encode_property_get(0x14, nvme::PropertySize::four_bytes)).status().ok();
  }

  Uri uri;
};

/// What a session is for: one block written and read.
void expect_io(Host& host, initiator::Session& session, initiator::QueuePair& queue) {
  Memory data(4096);
  for (const bool write : {true, false}) {
    Ticket ticket;
    const auto& space = session.namespaces().front();
    REQUIRE((write ? queue.write(ticket.request, space, Lba(8), data.all())
                   : queue.read(ticket.request, space, Lba(8), data.all())) == initiator::Submitted::accepted);
    REQUIRE(host.wait(queue, ticket));
    CHECK(ticket.request.outcome == initiator::Outcome::success);
  }
}

}  // namespace

TEST_CASE("Host and subsystem prove themselves to each other on every queue, with every hash and group") {
  const AuthHash hash = GENERATE(AuthHash::sha256, AuthHash::sha384, AuthHash::sha512);
  const DhGroup group = GENERATE(DhGroup::none, DhGroup::ffdhe2048, DhGroup::ffdhe3072, DhGroup::ffdhe4096,
                                 DhGroup::ffdhe6144, DhGroup::ffdhe8192);
  AuthRig rig({.hash = hash, .group = group});
  auto host = rig.make_host(right_secret(), other_secret());
  auto session = host->connect(rig.uri);
  auto queue = host->open(*session);
  expect_io(*host, *session, *queue);
  CHECK(rig.logger.said(fmt::format("authenticated ({}, {}, both ways)", name(hash), name(group))));
}

TEST_CASE("A host alone proves itself if nobody asks the subsystem to, with the best hash and group there is") {
  AuthRig rig({.group = std::nullopt, .controller_secret = false});
  auto host = rig.make_host(right_secret(), nullptr);
  auto session = host->connect(rig.uri);
  auto queue = host->open(*session);
  expect_io(*host, *session, *queue);
  CHECK(rig.logger.said("authenticated (sha512, ffdhe3072, one way)"));
}

TEST_CASE("Queues are authenticated again while they are in use, and go on") {
  AuthRig rig({.group = DhGroup::ffdhe2048});
  auto host = rig.make_host(right_secret(), other_secret());
  auto session = host->connect(rig.uri);
  auto queue = host->open(*session);
  for (int i = 0; i < 3; ++i) {
    for (initiator::QueuePair* which : {static_cast<initiator::QueuePair*>(nullptr), queue.get()})
      if (auto again = session->authenticate(which); !again) FAIL(again.error().message());
    expect_io(*host, *session, *queue);
  }
  host->run(10s);  // longer than any exchange may take
  expect_io(*host, *session, *queue);
}

TEST_CASE("Whoever has the wrong secret, or none, is not let in and told no more than that; neighbours go on") {
  AuthRig rig({.group = GENERATE(DhGroup::none, DhGroup::ffdhe2048)});
  const auto neighbour = rig.neighbour();
  const auto refused = [&](auth::SharedSecret mine, auth::SharedSecret theirs) {
    auto host = rig.make_host(std::move(mine), std::move(theirs));
    auto session = host->try_connect(rig.uri);
    REQUIRE_FALSE(session);
    rig.expect_untouched(neighbour);
    return session.error();
  };
  auto error = refused(other_secret(), nullptr);
  CHECK(error.kind() == ErrorKind::permission);
  CHECK_THAT(error.message(), Catch::Contains("authentication failed") && Catch::Contains(kHost));
  CHECK(rig.logger.said("the host's answer is wrong"));
  error = refused(nullptr, nullptr);
  CHECK(error.kind() == ErrorKind::permission);
  CHECK_THAT(error.message(), Catch::Contains("--secret-file"));
  error = refused(right_secret(), right_secret());  // it is we who do not believe
  CHECK(error.kind() == ErrorKind::permission);
  CHECK_THAT(error.message(), Catch::Contains("has not proved that it is itself"));
  error = refused(nullptr, right_secret());
  CHECK(error.kind() == ErrorKind::invalid_argument);
}

TEST_CASE("A subsystem that cannot prove itself is not connected to by a host that wants it to") {
  AuthRig rig({.controller_secret = false});
  auto host = rig.make_host(right_secret(), other_secret());
  auto session = host->try_connect(rig.uri);
  REQUIRE_FALSE(session);
  CHECK(session.error().kind() == ErrorKind::permission);
  CHECK(rig.logger.said("there is no controller secret"));
  // nor by the neighbour, from whom nothing is wanted
  host->options.host.nqn = nqn(kNeighbour);
  session = host->try_connect(rig.uri);
  REQUIRE_FALSE(session);
  CHECK_THAT(session.error().message(), Catch::Contains("Authentication Send"));
}

TEST_CASE("Before authentication nothing is carried out and nothing is learned, on any queue") {
  AuthRig rig;
  RawQueue& admin = rig.joined();
  for (const auto& sqe :
       {nvme::encode_property_get(0, nvme::PropertySize::eight_bytes),
        nvme::encode_plain(nvme::AdminOpcode::keep_alive), nvme::encode_plain(static_cast<nvme::AdminOpcode>(0xee))}) {
    const auto response = rig.execute(admin, sqe);
    CHECK(response.code() == StatusCode::authentication_required);
    CHECK(response.status().do_not_retry());
  }
  CHECK(rig.set_configuration(admin, TargetRig::enabled()).code() == StatusCode::authentication_required);
  rig.prove(admin);
  TargetRig::require_ok(rig.set_configuration(admin, TargetRig::enabled()));
  RawQueue& io = rig.queue_up(Qid(1), 32, Cntlid(1));
  const auto response = rig.connect(io, rig.connect_request(Qid(1), Cntlid(1)));
  TargetRig::require_ok(response);
  CHECK(nvme::parse_connect_response(response.cqe.dw0()).authentication_required);
  CHECK(rig.execute(io, nvme::encode_flush(Nsid(1))).code() == StatusCode::authentication_required);
  rig.prove(io);
  CHECK(rig.execute(io, nvme::encode_flush(Nsid(1))).status().ok());
}

TEST_CASE("A host that does not authenticate itself in time is closed, however busy it is about it") {
  AuthRig rig;
  RawQueue& silent = rig.joined();
  RawQueue& busy = rig.joined();
  for (int i = 0; i < 45 && !busy.ended(); ++i) {
    static_cast<void>(rig.challenged(busy));
    rig.run_for(100ms);
  }
  rig.expect([&] { return silent.ended() && busy.ended(); }, "both are closed");
  CHECK(rig.logger.said("has not authenticated itself within 5000 ms"));
}

TEST_CASE("A host that has failed to authenticate itself does not stay by asking why") {
  AuthRig rig;
  RawQueue& queue = rig.joined();
  rig.require_ok(rig.send(queue, AuthRig::encoded(nvme::AuthReply{.transaction = 7, .response = some_bytes(32, 1)})));
  for (int i = 0; i < 30 && !queue.ended(); ++i) {
    Bytes_ message;
    static_cast<void>(rig.receive(queue, message));
    rig.run_for(100ms);
  }
  CHECK(queue.ended());
}

TEST_CASE("Messages out of order, of another transaction, twice, too short or of no kind end it, and nobody else") {
  AuthRig rig;
  const auto neighbour = rig.neighbour();
  RawQueue& queue = rig.joined();
  Bytes_ message;
  SECTION("a reply before the challenge") {
    rig.require_ok(rig.send(queue, AuthRig::encoded(nvme::AuthReply{.transaction = 7, .response = some_bytes(32, 1)})));
    rig.expect_failure(queue, AuthFault::incorrect_message);
  }
  SECTION("a reply that was right for an earlier challenge") {
    const auto old = rig.reply_to(rig.challenged(queue), right_secret());
    static_cast<void>(rig.challenged(queue));
    rig.require_ok(rig.send(queue, old));
    rig.expect_failure(queue, AuthFault::failed);
  }
  SECTION("a reply twice") {
    const auto reply = rig.reply_to(rig.challenged(queue), right_secret());
    rig.require_ok(rig.send(queue, reply));
    rig.require_ok(rig.send(queue, reply));
    rig.expect_failure(queue, AuthFault::incorrect_message);
  }
  SECTION("a reply of another transaction") {
    rig.require_ok(rig.send(queue, rig.reply_to(rig.challenged(queue), right_secret(), {}, 8)));
    rig.expect_failure(queue, AuthFault::incorrect_payload);
  }
  SECTION("our own challenge sent back") {
    const auto asked = rig.challenged(queue);
    rig.require_ok(rig.send(queue, rig.reply_to(asked, right_secret(), nvme::parse_auth_challenge(asked)->challenge)));
    rig.expect_failure(queue, AuthFault::failed);
  }
  SECTION("a reply without its last byte") {
    auto reply = rig.reply_to(rig.challenged(queue), right_secret());
    reply.pop_back();
    rig.require_ok(rig.send(queue, reply));
    rig.expect_failure(queue, AuthFault::incorrect_payload);
  }
  SECTION("a reply with a Diffie-Hellman value where there is no group") {
    auto reply = rig.reply_to(rig.challenged(queue), right_secret());
    reply[10] = std::byte{1};
    reply.push_back(std::byte{2});
    rig.require_ok(rig.send(queue, reply));
    rig.expect_failure(queue, AuthFault::incorrect_payload);
  }
  SECTION("success2 without having asked for anything") {
    static_cast<void>(rig.challenged(queue));
    Bytes_ success(16);
    REQUIRE(nvme::encode_auth_success2(success, 7) == 16);
    rig.require_ok(rig.send(queue, success));
    rig.expect_failure(queue, AuthFault::incorrect_message);
  }
  SECTION("success2 in place of the reply's success1") {
    rig.require_ok(rig.send(queue, rig.reply_to(rig.challenged(queue), right_secret(), some_bytes(64, 1))));
    Bytes_ success(16);
    REQUIRE(nvme::encode_auth_success2(success, 7) == 16);
    rig.require_ok(rig.send(queue, success));
    rig.expect_failure(queue, AuthFault::incorrect_message);
  }
  SECTION("a receive with nothing to receive") {
    rig.expect_failure(queue, AuthFault::incorrect_message);
  }
  SECTION("a receive in place of the reply") {
    static_cast<void>(rig.challenged(queue));
    rig.expect_failure(queue, AuthFault::incorrect_message);
  }
  SECTION("no message at all") {
    rig.require_ok(rig.send(queue, some_bytes(5, 1)));
    rig.expect_failure(queue, AuthFault::incorrect_payload);
  }
  SECTION("a negotiate cut short") {
    auto cut = rig.negotiate();
    cut.resize(40);
    rig.require_ok(rig.send(queue, cut));
    rig.expect_failure(queue, AuthFault::incorrect_payload);
  }
  SECTION("a negotiate for a secure channel") {
    auto wanted = rig.negotiate();
    wanted[6] = std::byte{2};
    rig.require_ok(rig.send(queue, wanted));
    rig.expect_failure(queue, AuthFault::concatenation_mismatch);
  }
  SECTION("a negotiate without a hash") {
    rig.require_ok(rig.send(queue, rig.negotiate(7, 0)));
    rig.expect_failure(queue, AuthFault::hash_unusable);
  }
  SECTION("a negotiate without the group that is wanted") {
    rig.require_ok(rig.send(queue, rig.negotiate(7, 0b1110, 0b10)));
    rig.expect_failure(queue, AuthFault::group_unusable);
  }
  SECTION("failure2") {
    static_cast<void>(rig.challenged(queue));
    rig.require_ok(rig.send(queue, AuthRig::encoded(AuthMessage::failure2, nvme::AuthFailed{7, AuthFault::failed})));
    rig.expect([&] { return queue.ended(); }, "the connection is closed");
  }
  rig.expect_untouched(neighbour);
}

TEST_CASE("A host that is authenticated loses that by failing to be so again, and its queues with it") {
  AuthRig rig;
  RawQueue& admin = rig.joined();
  rig.prove(admin);
  TargetRig::require_ok(rig.set_configuration(admin, TargetRig::enabled()));
  RawQueue& io = rig.queue_up(Qid(1), 32, Cntlid(1));
  TargetRig::require_ok(rig.connect(io, rig.connect_request(Qid(1), Cntlid(1))));
  rig.prove(io);
  const auto asked = rig.challenged(admin);
  CHECK(rig.answers(admin));  // until it has failed
  rig.require_ok(rig.send(admin, rig.reply_to(asked, other_secret())));
  CHECK_FALSE(rig.answers(admin));
  rig.expect_failure(admin, AuthFault::failed);
  rig.expect([&] { return io.ended(); }, "the I/O queue goes, too");
}

TEST_CASE(
    "Authentication commands with fields, lengths or buffers that do not fit are refused, and nothing has happened") {
  AuthRig rig;
  RawQueue& queue = rig.joined();
  Bytes_ message;
  auto data = rig.memory(queue, 8192);
  const auto refused = [&](const nvme::SubmissionQueueEntry& sqe, std::uint32_t length) {
    return rig.transfer(queue, sqe, *data, length).code();
  };
  auto sqe = nvme::encode_auth_command(FabricsType::authentication_send, 72);
  CHECK(refused(sqe, 71) == StatusCode::sgl_invalid_length);
  CHECK(refused(sqe, 73) == StatusCode::sgl_invalid_length);
  CHECK(refused(nvme::encode_auth_command(FabricsType::authentication_send, 0), 0) == StatusCode::invalid_field);
  CHECK(refused(nvme::encode_auth_command(FabricsType::authentication_send, 4097), 4097) == StatusCode::invalid_field);
  sqe.cdw10 = 0;  // the protocol and what goes with it
  CHECK(refused(sqe, 72) == StatusCode::invalid_field);
  rig.require_ok(rig.send(queue, rig.negotiate()));
  CHECK(rig.receive(queue, message, 79).code() == StatusCode::invalid_field);  // the challenge has 80 bytes
  rig.require_ok(rig.receive(queue, message, 80));
  rig.require_ok(rig.send(queue, rig.reply_to(message, right_secret())));
  rig.require_ok(rig.receive(queue, message));
  CHECK(rig.answers(queue));
  // and where nobody has to authenticate himself there are none
  const auto neighbour = rig.neighbour();
  CHECK(rig.send(*neighbour.association.admin, rig.negotiate()).code() == StatusCode::invalid_opcode);
}

TEST_CASE("Whatever fails while two authenticate each other, nothing leaks and the next one is served") {
  for (const Operation kind :
       {Operation::connect, Operation::accept, Operation::register_memory, Operation::post, Operation::completion}) {
    INFO(transport::sim::name(kind));
    std::size_t runs = 0;
    for (bool clean = false; !clean; ++runs) {
      REQUIRE(runs < 300);
      AuthRig rig;
      rig.network.faults().fail_nth(kind, runs);
      {
        auto host = rig.make_host(right_secret(), other_secret());
        host->options.connect_timeout = 3s;
        auto session = host->try_connect(rig.uri);
        if (session) {
          auto queue = (*session)->open_queue_pair(*host->reactor, {.depth = 4});
          if (queue) static_cast<void>((*session)->authenticate(queue->get()));
          static_cast<void>((*session)->authenticate());
        }
      }
      clean = rig.network.faults().pending(kind);
      rig.network.faults().heal();
      RawQueue& next = rig.joined();
      rig.prove(next);
      CHECK(rig.answers(next));
    }
    CHECK(runs > 1);
  }
}
