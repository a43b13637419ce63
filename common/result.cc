#include "common/result.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>

namespace rbt {

std::string_view name(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::invalid_argument: return "invalid argument";
    case ErrorKind::not_found: return "not found";
    case ErrorKind::permission: return "permission denied";
    case ErrorKind::in_use: return "in use";
    case ErrorKind::resource: return "out of resources";
    case ErrorKind::unreachable: return "unreachable";
    case ErrorKind::timed_out: return "timed out";
    case ErrorKind::disconnected: return "disconnected";
    case ErrorKind::protocol: return "protocol violation";
    case ErrorKind::io: return "I/O error";
    case ErrorKind::unsupported: return "unsupported";
    case ErrorKind::mismatch: return "mismatch";
    case ErrorKind::internal: return "internal error";
  }
  return "unknown";
}

namespace {
ErrorKind kind_of(int error_number) noexcept {
  switch (error_number) {
    case EACCES:
    case EPERM:
    case EROFS: return ErrorKind::permission;
    case ENOENT:
    case ENODEV:
    case ENXIO:
    case ENOTDIR: return ErrorKind::not_found;
    case EADDRINUSE:
    case EBUSY:
    case EEXIST: return ErrorKind::in_use;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
    case ENOSPC:
    case EDQUOT:
    case EAGAIN: return ErrorKind::resource;
    case ECONNREFUSED:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
    case EADDRNOTAVAIL: return ErrorKind::unreachable;
    case ETIMEDOUT: return ErrorKind::timed_out;
    case ECONNRESET:
    case ECONNABORTED:
    case EPIPE:
    case ENOTCONN: return ErrorKind::disconnected;
    case EINVAL:
    case ENAMETOOLONG:
    case EISDIR: return ErrorKind::invalid_argument;
    case EOPNOTSUPP:
    case ENOSYS:
    case EPROTONOSUPPORT: return ErrorKind::unsupported;
    case EPROTO:
    case EBADMSG: return ErrorKind::protocol;
    default: return ErrorKind::io;
  }
}
}  // namespace

Error Error::from_errno(int error_number, std::string_view what, std::string_view remedy) {
  const char* const symbol = strerrorname_np(error_number);
  std::string text =
      fmt::format("{}: {} ({})", what, strerrordesc_np(error_number) ? strerrordesc_np(error_number) : "?",
                  symbol ? symbol : std::to_string(error_number));
  if (!remedy.empty()) text += fmt::format("; {}", remedy);
  return {kind_of(error_number), std::move(text)};
}

Error Error::within(std::string_view where) && {
  message_.insert(0, fmt::format("{}: ", where));
  return std::move(*this);
}

}  // namespace rbt
