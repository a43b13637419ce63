#include <cerrno>

#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

// For ublk, which is nothing else, and for rbt-target's file stores, which have threads instead if it is refused.
Finding examine_io_uring(const Machine& machine) {
  Finding finding{.subject = "io_uring", .purpose = "ublk; rbt-target's files without threads"};
  const int error = machine.io_uring_error;
  if (error == 0) {
    finding.seen = "io_uring_setup() works";
    return finding;
  }
  finding.verdict = Verdict::partial;
  finding.seen = Error::from_errno(error, "io_uring_setup()").message();
  const std::string disabled = contents(machine, "/proc/sys/kernel/io_uring_disabled").value_or("0");
  if (error == EPERM && (disabled.starts_with('1') || disabled.starts_with('2'))) {
    finding.seen += ", kernel.io_uring_disabled is " + disabled.substr(0, 1);
    finding.remedy = disabled.starts_with('2') ? "sysctl -w kernel.io_uring_disabled=0"
                                               : "sysctl -w kernel.io_uring_disabled=0, or be in kernel.io_uring_group";
  } else if (error == EPERM || error == ENOSYS) {
    finding.remedy =
        "a seccomp profile refuses it (containers' default ones do), or the kernel is older than 5.1: allow "
        "io_uring_setup, io_uring_enter and io_uring_register";
  } else {
    finding.remedy =
        "raise the limit of locked memory (`ulimit -l`) or of open files (`ulimit -n`), whichever it names";
  }
  return finding;
}

}  // namespace rbt::tools::doctor
