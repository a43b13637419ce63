#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "tools/rbt-connect/doctor/machine.h"

namespace rbt::tools::doctor {

namespace {

std::vector<std::string> names_in(const Machine& machine, std::string_view folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(below(machine, folder), error), end; !error && entry != end;
       entry.increment(error))
    names.push_back(entry->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// "mlx5_0 port 1 ACTIVE" for each, and whether one of them is.
std::string ports(const Machine& machine, const std::vector<std::string>& devices, bool& active) {
  std::string text;
  for (const std::string& device : devices) {
    const std::string folder = fmt::format("/sys/class/infiniband/{}/ports", device);
    for (const std::string& port : names_in(machine, folder)) {
      const std::string state = contents(machine, fmt::format("{}/{}/state", folder, port)).value_or("?");
      active = active || state.starts_with("4:");  // IB_PORT_ACTIVE
      const auto word = state.find(' ');
      text += fmt::format(
          "{}{} port {} {}", text.empty() ? "" : ", ", printable(device, 64), printable(port, 8),
          printable(state.substr(word == std::string::npos ? 0 : word + 1, state.find('\n') - word - 1), 32));
    }
  }
  return text;
}

// No adapter at all: the software one, if the kernel has it.
void without_device(const Machine& machine, Finding& finding) {
  finding.verdict = Verdict::missing;
  finding.seen = "there is no RDMA device in /sys/class/infiniband";
  constexpr std::string_view kAdd = "rdma link add rxe0 type rxe netdev DEVICE";
  switch (find_module(machine, "rdma_rxe")) {
    case Module::present: finding.remedy = fmt::format("with an adapter: load its driver; without: {}", kAdd); return;
    case Module::loadable:
      finding.remedy = fmt::format("with an adapter: load its driver; without: modprobe rdma_rxe && {}", kAdd);
      return;
    case Module::hidden:
    case Module::absent: break;
  }
  finding.seen += ", and " + without(machine, "rdma_rxe");
  finding.remedy =
      "load the adapter's driver, or boot a kernel that has CONFIG_RDMA_RXE; within one machine nvme+shm:// does";
}

}  // namespace

Finding examine_rdma(const Machine& machine) {
  Finding finding{.subject = "rdma", .purpose = "nvme+rdma://, other machines' disks"};
  const auto devices = names_in(machine, "/sys/class/infiniband");
  if (devices.empty()) {
    without_device(machine, finding);
    return finding;
  }
  bool active = false;
  finding.seen = ports(machine, devices, active);
  const int error = open_error(machine, "/dev/infiniband/rdma_cm");
  if (error != 0) {
    finding.verdict = Verdict::missing;
    finding.seen += ", /dev/infiniband/rdma_cm does not open";
    finding.remedy = error == ENOENT ? "modprobe rdma_ucm ib_uverbs; in a container: --device /dev/infiniband"
                                     : "run it as root, or with access to /dev/infiniband";
  } else if (!active) {
    finding.verdict = Verdict::missing;
    finding.remedy = "no port is ACTIVE: look at the cable, the switch, and `ip link` of its network device";
  }
  return finding;
}

}  // namespace rbt::tools::doctor
