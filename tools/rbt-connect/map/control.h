#pragma once
// How a volume's process is spoken to: a Unix socket, one line of JSON each way, then it is closed.
//
//   {"version":1,"command":"status"}                  -> {"ok":true,"status":{...}}
//   {"version":1,"command":"unmap","force":false}     -> {"ok":true}, once nothing is left
//                                                        {"ok":false,"kind":"in_use","message":"..."}

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "transport/reactor/reactor.h"

namespace rbt::tools::map {

using Json = nlohmann::ordered_json;

inline constexpr std::size_t kRequestMax = 4096;
inline constexpr std::size_t kAnswerMax = 256 * 1024;

[[nodiscard]] Json answer_of(const Error& error);
/// An answer's line. Error: protocol (it is none), or the one that it carries.
[[nodiscard]] Result<Json> parse_answer(std::string_view line);

/// The process's side. Belongs to the thread that turns the reactor. Whoever is not root, nor the user that it runs as, is
/// refused; whoever is slow, or sends more than a line of kRequestMax bytes, is cut off. Eight at a time.
class ControlServer {
 public:
  /// Whom an answer goes to; valid for the life of the server, ignored when that client has gone.
  using Client = std::uint64_t;
  /// From within a turn of the reactor. Nothing: answer() will be called later.
  using Handler = std::function<std::optional<Json>(Client client, const Json& request)>;

  /// Replaces a socket that is left over: the caller has the volume's lock. The file stays: it is removed with the state.
  [[nodiscard]] static Result<std::unique_ptr<ControlServer>> listen(transport::Reactor& reactor,
                                                                     const std::filesystem::path& path,
                                                                     Handler handler);
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  void answer(Client client, const Json& json);
  /// Sends what is still to be sent; waits for slow clients until then.
  void finish(Instant deadline);

 private:
  struct Connection;
  ControlServer(transport::Reactor& reactor, Handler handler);
  void accept_all();
  void handle(Connection& connection);
  void read(Connection& connection);
  void send(Connection& connection);
  void drop(Connection& connection);

  transport::Reactor& reactor_;
  Handler handler_;
  int fd_ = -1;
  Client next_ = 1;
  std::vector<std::unique_ptr<Connection>> connections_;
};

/// The other side: a request under way. Several at once are waited for one after the other.
class Asked {
 public:
  /// Error: not_found (nobody listens), permission.
  [[nodiscard]] static Result<Asked> send(const std::filesystem::path& path, const Json& request);
  Asked(Asked&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Asked(const Asked&) = delete;
  Asked& operator=(const Asked&) = delete;
  Asked& operator=(Asked&&) = delete;
  ~Asked();

  /// Error: timed_out, disconnected (without an answer), protocol, and what the process answers.
  [[nodiscard]] Result<Json> answer(const Clock& clock, Instant deadline);

 private:
  explicit Asked(int fd) noexcept : fd_(fd) {}
  int fd_;
};

}  // namespace rbt::tools::map
