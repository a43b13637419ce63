#pragma once
// Result<T>: what an operation that the operator may have to hear about returns. An Error says what was tried,
// on what, what was seen, what is allowed and what to do next. Nothing here is for the data path: there small
// [[nodiscard]] enums say `full` or `dead`.

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace rbt {

/// What sort of failure it was: chooses the exit status of a tool and whether trying again can help.
enum class ErrorKind : std::uint8_t {
  invalid_argument,  ///< the caller's words are wrong: command line, configuration, URI
  not_found,         ///< no such device, file, subsystem, namespace, host name
  permission,        ///< the operating system or the peer refuses this user
  in_use,            ///< the address, file or device belongs to somebody else at the moment
  resource,          ///< memory, descriptors, RLIMIT_MEMLOCK, queue entries, space
  unreachable,       ///< no route, nobody listens, refused by the peer's machine
  timed_out,         ///< a deadline passed
  disconnected,      ///< the connection was lost while in use
  protocol,          ///< the peer said something that the specification does not allow
  io,                ///< the medium, or the peer's medium, failed
  unsupported,       ///< this build, kernel, device or peer cannot do it
  mismatch,          ///< data is not what it must be: verification failed, identity changed
  internal,          ///< a defect of rbt
};

[[nodiscard]] std::string_view name(ErrorKind kind) noexcept;

/// A failure as a person reads it. Cheap to move; not for the data path.
class [[nodiscard]] Error {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

  /// From an errno value: the message ends in ": <strerror> (<EXXX>)" and, if given, "; <remedy>".
  /// The kind follows from the errno (EACCES -> permission, ENOENT -> not_found, …).
  static Error from_errno(int error_number, std::string_view what, std::string_view remedy = {});

  [[nodiscard]] ErrorKind kind() const noexcept { return kind_; }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }

  /// The same error seen from further out: "<where>: <message>".
  [[nodiscard]] Error within(std::string_view where) &&;

 private:
  ErrorKind kind_;
  std::string message_;
};

template <typename T>
using Result = tl::expected<T, Error>;

/// `return failure(ErrorKind::not_found, "…")` from a function that returns any Result.
[[nodiscard]] inline tl::unexpected<Error> failure(ErrorKind kind, std::string message) {
  return tl::unexpected<Error>(Error(kind, std::move(message)));
}
[[nodiscard]] inline tl::unexpected<Error> failure(Error error) {
  return tl::unexpected<Error>(std::move(error));
}
[[nodiscard]] inline tl::unexpected<Error> errno_failure(int error_number, std::string_view what,
                                                         std::string_view remedy = {}) {
  return tl::unexpected<Error>(Error::from_errno(error_number, what, remedy));
}

}  // namespace rbt
