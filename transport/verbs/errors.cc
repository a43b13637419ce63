#include "transport/verbs/errors.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <infiniband/verbs.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

namespace rbt::transport::verbs {

namespace {

namespace fs = std::filesystem;

// Names in a directory; none if it cannot be read.
std::string names_in(const std::string& directory, std::string_view prefix) {
  std::string names;
  std::error_code ignored;
  for (fs::directory_iterator entry(directory, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with(prefix)) names += (names.empty() ? "" : ", ") + name;
  }
  return names;
}

bool may_use(const std::string& path) {
  return ::faccessat(AT_FDCWD, path.c_str(), R_OK | W_OK, AT_EACCESS) == 0;
}

std::string first_unusable(const std::string& directory, std::string_view prefix) {
  std::error_code ignored;
  for (fs::directory_iterator entry(directory, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
    const std::string path = entry->path().string();
    if (entry->path().filename().string().starts_with(prefix) && !may_use(path)) return path;
  }
  return {};
}

std::string bytes_text(std::uint64_t bytes) {
  constexpr std::uint64_t kKi = 1024;
  if (bytes % (kKi * kKi) == 0) return fmt::format("{} MiB", bytes / (kKi * kKi));
  if (bytes % kKi == 0) return fmt::format("{} KiB", bytes / kKi);
  return fmt::format("{} bytes", bytes);
}

constexpr std::string_view kLoopback =
    "loopback addresses (127.0.0.0/8, ::1) never belong to an RDMA device, not even over rdma_rxe: use the address of "
    "the interface that the device is on, or nvme+shm:// on one machine";

std::string present_text(const std::string& present) {
  return present.empty() ? "no RDMA device here has an address" : "RDMA devices here: " + present;
}

}  // namespace

Error explain_no_rdma(int error_number, const std::string& sysfs, const std::string& devices) {
  const std::string present = names_in(sysfs, "");
  if (present.empty())
    return {ErrorKind::not_found,
            "no RDMA device on this machine: load rdma_rxe and `rdma link add rxe0 type rxe netdev DEV`, or use "
            "nvme+shm://"};
  if (names_in(devices, "uverbs").empty())
    return {
        ErrorKind::not_found,
        fmt::format("RDMA devices are present ({}), but {}/uverbs* is missing: `modprobe ib_uverbs`; in a container, "
                    "pass it {}",
                    present, devices, devices)};
  if (const std::string path = first_unusable(devices, "uverbs"); !path.empty())
    return {ErrorKind::permission,
            fmt::format("opening {}: permission denied (EACCES); RDMA needs no root, only read and write access to it: "
                        "`chmod a+rw {}` or a udev rule",
                        path, path)};
  const std::string cm = devices + "/rdma_cm";
  std::error_code ignored;
  if (!fs::exists(cm, ignored))
    return {
        ErrorKind::not_found,
        fmt::format("RDMA devices are present ({}), but {} is missing: `modprobe rdma_ucm`; in a container, pass it {}",
                    present, cm, devices)};
  if (!may_use(cm))
    return {ErrorKind::permission,
            fmt::format("opening {}: permission denied (EACCES); read and write access is needed: `chmod a+rw {}` or a "
                        "udev rule",
                        cm, cm)};
  return Error::from_errno(error_number, fmt::format("opening RDMA devices ({})", present),
                           "`ibv_devinfo` and `rdma link` show what the kernel has");
}

Error call_failed(int error_number, std::string_view call, std::string_view device) {
  std::string_view remedy;
  if (error_number == ENOMEM) remedy = "the device or the machine has no room: fewer or shallower connections";
  if (error_number == EMFILE || error_number == ENFILE) remedy = "raise the limit of open files (`ulimit -n`)";
  if (error_number == ENODEV || error_number == EIO) remedy = "the device may be going away: see `rdma link` and dmesg";
  return Error::from_errno(error_number, fmt::format("{} on {}", call, device), remedy);
}

Error registration_failed(int error_number, std::size_t bytes, std::string_view device) {
  const std::string what = fmt::format("ibv_reg_mr of {} on {}", bytes_text(bytes), device);
  if (error_number == EFAULT || error_number == EOPNOTSUPP) {
    Error error = Error::from_errno(
        error_number, what,
        "this memory cannot be registered for writing (a read-only or unmapped range, a file or block device mapped "
        "MAP_SHARED, fs-dax); memfd, tmpfs, huge pages, devdax and anonymous memory can");
    return {ErrorKind::unsupported, error.message()};
  }
  if (error_number != ENOMEM && error_number != EPERM && error_number != EAGAIN)
    return call_failed(error_number, fmt::format("ibv_reg_mr of {}", bytes_text(bytes)), device);
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  const std::string seen = limit.rlim_cur == RLIM_INFINITY
                               ? "RLIMIT_MEMLOCK is unlimited, so the machine or the device is out of memory"
                               : fmt::format(
                                     "RLIMIT_MEMLOCK is {}, {} more is needed: raise it with `ulimit -l` (KiB) or "
                                     "LimitMEMLOCK=, or have CAP_IPC_LOCK",
                                     bytes_text(limit.rlim_cur), bytes_text(bytes));
  return {ErrorKind::resource, Error::from_errno(error_number, what, seen).message()};
}

Error listen_failed(int error_number, std::string_view call, const std::string& address, bool loopback,
                    const std::string& present) {
  const std::string what = fmt::format("listening on {}: {}", address, call);
  if (error_number == EADDRINUSE)
    return Error::from_errno(
        error_number, what,
        "another listener (this program's or nvmet's) has this address: stop it or take another port");
  if (error_number == EADDRNOTAVAIL || error_number == ENODEV || error_number == EINVAL) {
    const Error seen = Error::from_errno(
        error_number, what,
        loopback ? std::string(kLoopback) : "the address is not on an RDMA device; " + present_text(present));
    return {ErrorKind::not_found, seen.message()};
  }
  if (error_number == EACCES)
    return Error::from_errno(error_number, what, "ports below 1024 need CAP_NET_BIND_SERVICE: take another port");
  return Error::from_errno(error_number, what);
}

Error resolve_failed(int error_number, std::string_view call, const std::string& address, bool loopback,
                     const std::string& present) {
  const std::string what = fmt::format("connecting to {}: {}", address, call);
  std::string remedy;
  if (loopback) {
    remedy = kLoopback;
  } else if (error_number == ENETUNREACH || error_number == EHOSTUNREACH) {
    remedy = "there is no route: see `ip route get`; " + present_text(present);
  } else if (error_number == ENODEV || error_number == EADDRNOTAVAIL) {
    remedy = "the route leads over an interface without an RDMA device; " + present_text(present);
  } else if (error_number == ETIMEDOUT) {
    remedy =
        "the address does not answer (ARP or neighbour discovery): is the machine up, the cable in, the address right?";
  }
  const Error seen = Error::from_errno(error_number, what, remedy);
  return {error_number == ETIMEDOUT ? ErrorKind::timed_out : ErrorKind::unreachable, seen.message()};
}

std::string_view reject_reason(int status) noexcept {
  switch (status) {
    case 1: return "no queue pair available";
    case 3: return "no resources available";
    case 4: return "timeout";
    case 5: return "unsupported request";
    case 6: return "invalid communication id";
    case kRejectNobodyListens: return "nobody listens there (invalid service id)";
    case 9: return "invalid transport service type";
    case kRejectStale: return "stale connection";
    case 12: return "invalid address (GID)";
    case 18: return "its device does not like the path MTU";
    case kRejectConsumer: return "the program there refused";
    default: return "see IBA Vol. 1, 12.6.7.2";
  }
}

CompletionStatus status_of(const ibv_wc& completion) noexcept {
  switch (completion.status) {  // NOLINT: the rest is ours to answer for
    case IBV_WC_SUCCESS: return CompletionStatus::success;
    case IBV_WC_WR_FLUSH_ERR: return CompletionStatus::flushed;
    case IBV_WC_REM_ACCESS_ERR: return CompletionStatus::remote_access_error;
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_ABORT_ERR: return CompletionStatus::remote_error;
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR: return CompletionStatus::retry_exceeded;
    case IBV_WC_RNR_RETRY_EXC_ERR: return CompletionStatus::rnr_retry_exceeded;
    case IBV_WC_LOC_LEN_ERR:
    case IBV_WC_LOC_QP_OP_ERR:
    case IBV_WC_LOC_EEC_OP_ERR:
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_MW_BIND_ERR:
    case IBV_WC_BAD_RESP_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
    case IBV_WC_LOC_RDD_VIOL_ERR:
    case IBV_WC_REM_INV_RD_REQ_ERR:
    case IBV_WC_INV_EECN_ERR:
    case IBV_WC_INV_EEC_STATE_ERR:
    case IBV_WC_FATAL_ERR:
    case IBV_WC_GENERAL_ERR:
    case IBV_WC_TM_ERR:
    case IBV_WC_TM_RNDV_INCOMPLETE: return CompletionStatus::local_error;
  }
  return CompletionStatus::local_error;
}

}  // namespace rbt::transport::verbs
