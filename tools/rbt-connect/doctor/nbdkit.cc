#include <array>

#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

namespace {

// Debian's folder, and where rbt's own prefix puts it.
constexpr std::array<std::string_view, 3> kPlugins = {"/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-rbt-plugin.so",
                                                      "/usr/lib64/nbdkit/plugins/nbdkit-rbt-plugin.so",
                                                      "/usr/lib/aarch64-linux-gnu/nbdkit/plugins/nbdkit-rbt-plugin.so"};

}  // namespace

Finding examine_nbdkit(const Machine& machine) {
  Finding finding{.subject = "nbdkit", .purpose = "NBD over a socket, for qemu, nbdcopy and others: nbdkit rbt URI"};
  if (!exists(machine, "/usr/bin/nbdkit") && !exists(machine, "/usr/sbin/nbdkit")) {
    finding.verdict = Verdict::missing;
    finding.seen = "there is no nbdkit in /usr/bin or /usr/sbin";
    finding.remedy = "apt install nbdkit";
    return finding;
  }
  for (const std::string_view plugin : kPlugins) {
    if (!exists(machine, plugin)) continue;
    finding.seen = std::string(plugin);
    return finding;
  }
  finding.verdict = Verdict::partial;
  finding.seen = "nbdkit is there, nbdkit-rbt-plugin.so is not among its plugins";
  finding.remedy = "cmake --install with the prefix /usr, or give nbdkit the path of nbdkit-rbt-plugin.so";
  return finding;
}

}  // namespace rbt::tools::doctor
