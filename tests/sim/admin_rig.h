#pragma once
// A target and an enabled admin queue, with verbs for what is asked there.

#include <array>
#include <string>
#include <utility>

#include "tests/sim/target_rig.h"

namespace rbt::test {

struct AdminRig : TargetRig {
  explicit AdminRig(RigOptions options = {}, const std::string& subsystem = kSubsystem)
      : TargetRig(std::move(options)), association(associate(subsystem)), admin(*association.admin) {}
  template <typename T>
  T identify(std::uint8_t cns, std::uint32_t nsid = 0) {
    return read_structure<T>(admin, identify_entry(cns, nsid));
  }
  nvme::StatusCode identify_code(std::uint8_t cns, std::uint32_t nsid = 0, std::uint8_t command_set = 0) {
    auto to = memory(admin, 4096);
    return transfer(admin, identify_entry(cns, nsid, command_set), *to, 4096).code();
  }
  static nvme::SubmissionQueueEntry identify_entry(std::uint8_t cns, std::uint32_t nsid, std::uint8_t command_set = 0) {
    return nvme::encode_identify({.nsid = Nsid(nsid), .cns = cns, .cntlid = Cntlid(0), .command_set = command_set});
  }
  static nvme::SubmissionQueueEntry log_entry(std::uint8_t lid, std::uint32_t length, std::uint64_t offset = 0,
                                              std::uint32_t nsid = 0xffffffff) {
    return nvme::encode_get_log_page(
        {.nsid = Nsid(nsid), .lid = lid, .offset = Bytes(offset), .length = Bytes(length)});
  }
  template <typename T>
  T log(std::uint8_t lid) {
    return read_structure<T>(admin, log_entry(lid, sizeof(T)));
  }
  Response log_response(const nvme::SubmissionQueueEntry& sqe, std::uint32_t length) {
    auto to = memory(admin, length);
    return transfer(admin, sqe, *to, length);
  }
  Response get_feature(std::uint8_t fid, std::uint32_t value = 0) {
    return execute(admin, nvme::encode_get_features({.nsid = Nsid(0), .fid = fid, .value = value}));
  }
  Response set_feature(std::uint8_t fid, std::uint32_t value) {
    return execute(admin, nvme::encode_set_features({.nsid = Nsid(0), .fid = fid, .value = value}));
  }
  Association association;
  RawQueue& admin;
};

}  // namespace rbt::test
