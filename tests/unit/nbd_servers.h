#pragma once
// Real NBD servers for tests: nbdkit and qemu-nbd on a Unix socket, killed at the end of the scope.

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace rbt::target::test {

inline int connect_to(const std::string& socket) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ::sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(fd, reinterpret_cast<const ::sockaddr*>(&address), sizeof address) == 0) return fd;
  ::close(fd);
  return -1;
}

/// A program in the foreground that listens on `socket`.
class NbdServerProcess {
 public:
  NbdServerProcess(std::string socket, std::vector<std::string> command)
      : socket_(std::move(socket)), command_(std::move(command)) {
    start();
  }
  ~NbdServerProcess() { kill(); }
  NbdServerProcess(const NbdServerProcess&) = delete;
  NbdServerProcess& operator=(const NbdServerProcess&) = delete;

  [[nodiscard]] static std::vector<std::string> nbdkit(const std::string& socket, std::vector<std::string> words) {
    words.insert(words.begin(), {"nbdkit", "-f", "-U", socket});
    return words;
  }
  [[nodiscard]] static std::vector<std::string> qemu(const std::string& socket, const std::string& image) {
    return {"qemu-nbd", "-t", "-e", "8", "-f", "qcow2", "--discard=unmap", "--detect-zeroes=off", "-k", socket, image};
  }

  /// Returns when it listens.
  void start() {
    ::unlink(socket_.c_str());
    std::vector<char*> words;
    for (std::string& word : command_)
      words.push_back(word.data());
    words.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execvp(words[0], words.data());
      ::_exit(127);
    }
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    for (int probe = -1; probe < 0;) {
      INFO("install nbdkit and qemu-utils: ci/install-deps --test; " << command_[0]);
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      REQUIRE(::waitpid(pid_, nullptr, WNOHANG) == 0);
      probe = connect_to(socket_);
      if (probe < 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      if (probe >= 0) ::close(probe);
    }
  }
  /// Returns when it is gone, and all that it held with it.
  void kill(int signal = SIGKILL) {
    if (pid_ <= 0) return;
    ::kill(pid_, signal);
    ::waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  [[nodiscard]] std::vector<std::string>& command() noexcept { return command_; }
  /// Returns when it has let go of every connection, and carried out what had come over them.
  void wait_until_alone() const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    for (std::size_t sockets = 2; sockets > 1; std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      std::ifstream all("/proc/net/unix");
      sockets = 0;  // the one that it listens on, and those that it has accepted
      for (std::string line; std::getline(all, line);)
        if (line.ends_with(" " + socket_)) ++sockets;
    }
  }

 private:
  std::string socket_;
  std::vector<std::string> command_;
  ::pid_t pid_ = -1;
};

/// Passes bytes between clients and a server, and cuts the first connection after `cut_after` bytes from its client.
class CuttingRelay {
 public:
  CuttingRelay(const std::string& listen_on, std::string server, std::uint64_t cut_after)
      : server_(std::move(server)), left_(cut_after) {
    ::unlink(listen_on.c_str());
    listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ::sockaddr_un address{};
    address.sun_family = AF_UNIX;
    listen_on.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::bind(listener_, reinterpret_cast<const ::sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(listener_, 8) == 0);
    thread_ = std::thread([this] { run(); });
  }
  ~CuttingRelay() {
    stopping_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }
  /// False: the connection carried less than that.
  [[nodiscard]] bool has_cut() const noexcept { return cut_; }

 private:
  /// False: this pair has ended.
  bool pass(int from, int to, std::uint64_t most, std::uint64_t& passed) {
    std::vector<char> data(std::min<std::uint64_t>(most, 65536));
    const auto got = ::recv(from, data.data(), data.size(), 0);
    if (got <= 0) return false;
    passed = static_cast<std::uint64_t>(got);
    for (::ssize_t sent = 0; sent < got;) {
      const auto more = ::send(to, data.data() + sent, static_cast<std::size_t>(got - sent), MSG_NOSIGNAL);
      if (more <= 0) return false;
      sent += more;
    }
    return true;
  }
  void serve(int client) {
    const int server = connect_to(server_);
    std::array<::pollfd, 3> fds{{{client, POLLIN, 0}, {server, POLLIN, 0}, {listener_, POLLHUP, 0}}};
    std::uint64_t passed = 0;
    while (server >= 0 && ::poll(fds.data(), fds.size(), -1) > 0 && !stopping_) {
      if (fds[0].revents != 0) {
        if (!cut_ && left_ == 0) {
          cut_ = true;
          break;
        }
        if (!pass(client, server, cut_ ? 65536 : left_, passed)) break;
        if (!cut_) left_ -= passed;
      }
      if (fds[1].revents != 0 && !pass(server, client, 65536, passed)) break;
    }
    ::close(client);
    if (server >= 0) ::close(server);
  }
  void run() {
    while (!stopping_) {
      const int client = ::accept(listener_, nullptr, nullptr);
      if (client >= 0) serve(client);
    }
  }
  std::string server_;
  std::uint64_t left_;
  std::atomic<bool> cut_{false};
  std::atomic<bool> stopping_{false};
  int listener_ = -1;
  std::thread thread_;
};

inline std::string text_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

inline std::size_t times(const std::string& text, const std::string& word) {
  std::size_t found = 0;
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1))
    ++found;
  return found;
}

}  // namespace rbt::target::test
