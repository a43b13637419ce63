#include <cerrno>

#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

// Without it memory is copied instead of being registered on the spot (docs/embedding.md).
Finding examine_userfaultfd(const Machine& machine) {
  Finding finding{.subject = "userfaultfd", .purpose = "programs' own buffers without a copy"};
  const int error = machine.userfaultfd_error;
  if (error == 0) {
    finding.seen = "userfaultfd() in user mode works";
    return finding;
  }
  finding.verdict = Verdict::partial;
  finding.seen = Error::from_errno(error, "userfaultfd() in user mode").message();
  if (error == EPERM || error == EACCES)
    finding.remedy = "a seccomp profile refuses it: allow the system call userfaultfd";
  else if (error == ENOSYS)
    finding.remedy = "boot a kernel that has CONFIG_USERFAULTFD (in a container, its seccomp profile may say so, too)";
  else if (error == EINVAL)
    finding.remedy = "boot Linux 5.11 or later";
  else
    finding.remedy = "raise the limit of open files (`ulimit -n`) if that is what it says";
  return finding;
}

}  // namespace rbt::tools::doctor
