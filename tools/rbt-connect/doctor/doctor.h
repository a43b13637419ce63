#pragma once
// What this machine can do for rbt, and why not, each with the remedy. One file per concern; all they know of the machine is
// a root directory and the answers to three system calls, so that tests make machines up.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tools/rbt-connect/describe.h"

namespace rbt::tools::doctor {

enum class Verdict : std::uint8_t {
  good,     ///< works
  partial,  ///< works with less: the remedy says how to have all of it
  missing,  ///< does not work until the remedy is applied
};
[[nodiscard]] std::string_view name(Verdict verdict) noexcept;

struct Finding {
  std::string subject{};  ///< "ublk": stable, programs look for it
  std::string purpose{};  ///< what it is for
  Verdict verdict = Verdict::good;
  std::string seen{};
  std::string remedy{};  ///< empty if good
};

/// What is looked at.
struct Machine {
  std::filesystem::path root = "/";  ///< in front of every path
  int io_uring_error = 0;            ///< errno of io_uring_setup(); 0: it works
  int userfaultfd_error = 0;         ///< errno of userfaultfd(UFFD_USER_MODE_ONLY)
};
/// This one. Makes the system calls.
[[nodiscard]] Machine this_machine();

/// All findings, in an order that does not change. Never fails: what cannot be looked at is found missing.
[[nodiscard]] std::vector<Finding> examine(const Machine& machine);
[[nodiscard]] std::string describe(const std::vector<Finding>& findings, Format format);

// One concern each.
[[nodiscard]] Finding examine_ublk(const Machine& machine);
[[nodiscard]] Finding examine_nbd(const Machine& machine);
[[nodiscard]] Finding examine_fuse(const Machine& machine);
[[nodiscard]] Finding examine_nbdkit(const Machine& machine);
[[nodiscard]] Finding examine_rdma(const Machine& machine);
[[nodiscard]] Finding examine_kernel_host(const Machine& machine);
[[nodiscard]] Finding examine_memlock(const Machine& machine);
[[nodiscard]] Finding examine_userfaultfd(const Machine& machine);
[[nodiscard]] Finding examine_io_uring(const Machine& machine);

}  // namespace rbt::tools::doctor
