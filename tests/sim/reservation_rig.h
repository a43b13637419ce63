#pragma once
// Several hosts before one target, each with a queue pair and verbs for reservations.

#include <array>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/nvme/reservation.h"
#include "tests/sim/io_rig.h"

namespace rbt::test {

[[nodiscard]] inline nvme::HostId host_id(std::uint8_t number) {
  return nvme::HostId(std::array<std::uint8_t, 16>{0xaa, number});
}

/// Base 2.0, figure "Command Behavior in the Presence of a Reservation": A and C, by type, for who is not registered, who is
/// registered and does not hold it, who holds it.
struct Behaviour {
  const char* read;
  const char* write;
};
inline constexpr std::array<Behaviour, 6> kBehaviour{{
    {"AAA", "CCA"},
    {"CCA", "CCA"},
    {"AAA", "CAA"},
    {"CAA", "CAA"},
    {"AAA", "CAA"},
    {"CAA", "CAA"},
}};

struct ReservationRig : IoRig {
  /// One controller of a host, and its I/O queue.
  struct Host {
    RawQueue* admin = nullptr;
    RawQueue* io = nullptr;
    Cntlid cntlid{};
  };
  explicit ReservationRig(RigOptions options = {}, std::uint32_t nsid_ = 1)
      : IoRig(std::move(options)), nsid(nsid_), keys(memory(*queue, 64)) {}

  Host add_host(const nvme::HostId& id) {
    Host added;
    added.admin = &queue_up(Qid(0));
    auto request = connect_request(Qid(0), nvme::kCntlidDynamic);
    request.host_id = id;
    request.host_nqn = nqn("nqn.2024-01.example:" + id.to_string());
    const auto response = connect(*added.admin, request);
    require_ok(response);
    added.cntlid = nvme::parse_connect_response(response.cqe.dw0()).cntlid;
    require_ok(set_configuration(*added.admin, enabled()));
    added.io = &queue_up(Qid(1), 32, added.cntlid);
    request.qid = Qid(1);
    request.cntlid = added.cntlid;
    require_ok(connect(*added.io, request));
    return added;
  }
  Host add_host(std::uint8_t number) { return add_host(host_id(number)); }

  nvme::SubmissionQueueEntry with_keys(nvme::SubmissionQueueEntry sqe, std::uint64_t first, std::uint64_t second,
                                       std::uint32_t length) {
    const auto bytes = nvme::encode_reservation_keys(first, second);
    std::copy(bytes.begin(), bytes.end(), keys->bytes().begin());
    sqe.sgl = keys->keyed(length);
    return sqe;
  }
  nvme::SubmissionQueueEntry entry_of(const nvme::ReservationRegister& command) {
    return with_keys(nvme::encode_reservation_register(Nsid(nsid), command), command.current_key, command.new_key, 16);
  }
  nvme::SubmissionQueueEntry entry_of(const nvme::ReservationAcquire& command) {
    return with_keys(nvme::encode_reservation_acquire(Nsid(nsid), command), command.current_key, command.preempt_key,
                     16);
  }
  nvme::SubmissionQueueEntry entry_of(const nvme::ReservationRelease& command) {
    return with_keys(nvme::encode_reservation_release(Nsid(nsid), command), command.current_key, 0, 8);
  }
  template <typename Command>
  nvme::StatusCode ask(const Host& by, const Command& command) {
    return execute(*by.io, entry_of(command)).code();
  }
  nvme::StatusCode add_key(const Host& by, std::uint64_t key,
                           nvme::ChangePersistence persistence = nvme::ChangePersistence::no) {
    return ask(by, nvme::ReservationRegister{.persistence = persistence, .new_key = key});
  }
  nvme::StatusCode acquire(const Host& by, std::uint64_t key, nvme::ReservationType type) {
    return ask(by, nvme::ReservationAcquire{.type = type, .current_key = key});
  }
  nvme::StatusCode preempt(const Host& by, std::uint64_t key, std::uint64_t other, nvme::ReservationType type) {
    return ask(by, nvme::ReservationAcquire{
                       .action = nvme::AcquireAction::preempt, .type = type, .current_key = key, .preempt_key = other});
  }
  nvme::ReservationStatus report(const Host& by) {
    auto to = memory(*by.io, 16384);
    require_ok(
        transfer(*by.io, nvme::encode_reservation_report(Nsid(nsid), {.bytes = 16384, .extended = true}), *to, 16384));
    const auto status = nvme::parse_reservation_status(to->bytes());
    if (!status) throw std::runtime_error("a report that cannot be read");
    return *status;
  }
  nvme::StatusCode touch(const Host& by, nvme::IoOpcode opcode) {
    auto block = memory(*by.io, kBlock);
    auto sqe = entry(opcode, 0, 1);
    sqe.nsid = nvme::Le32(nsid);
    return transfer(*by.io, sqe, *block, kBlock).code();
  }
  /// Log page 80h, read and not retained.
  nvme_resv_notification_log notice(const Host& by) {
    return read_structure<nvme_resv_notification_log>(
        *by.admin, nvme::encode_get_log_page({.nsid = nvme::kNsidAll,
                                              .lid = NVME_LOG_LID_RESERVATION,
                                              .length = Bytes(sizeof(nvme_resv_notification_log))}));
  }
  std::uint32_t nsid;
  std::unique_ptr<HostMemory> keys;
};

/// A directory for one test.
struct ScratchDirectory {
  ScratchDirectory() {
    char name[] = "/tmp/rbt-reservations-XXXXXX";
    if (::mkdtemp(name) == nullptr) throw std::runtime_error("no scratch directory");
    path = name;
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

}  // namespace rbt::test
