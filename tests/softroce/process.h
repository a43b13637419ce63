#pragma once
// Other processes, and the machine's network, for fault tests in the rig.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <filesystem>
#include <string>
#include <vector>

namespace rbt::test {

/// A program beside this one (or anywhere, by an absolute path), its standard output readable here. Killed at the end.
class Process {
 public:
  enum class Hear { output, output_and_errors };
  explicit Process(const std::string& program, std::vector<std::string> arguments, Hear hear = Hear::output) {
    std::array<int, 2> ends{};
    REQUIRE(::pipe2(ends.data(), O_CLOEXEC | O_NONBLOCK) == 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    if (hear == Hear::output_and_errors) posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
    const std::string path = std::filesystem::read_symlink("/proc/self/exe").parent_path() / program;
    std::vector<char*> words{const_cast<char*>(path.c_str())};
    for (std::string& argument : arguments)
      words.push_back(argument.data());
    words.push_back(nullptr);
    const int error = ::posix_spawn(&pid_, path.c_str(), &actions, nullptr, words.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ends[1]);
    output_ = ends[0];
    REQUIRE(error == 0);
  }
  ~Process() {
    if (pid_ > 0) {
      signal(SIGKILL);
      (void)wait();
    }
    ::close(output_);
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  void signal(int number) const { ::kill(pid_, number); }
  /// Its exit status, or 128 and the signal.
  int wait() {
    int status = 0;
    ::waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  [[nodiscard]] bool ended() {
    int status = 0;
    if (pid_ < 0) return true;
    if (::waitpid(pid_, &status, WNOHANG) != pid_) return false;
    pid_ = -1;
    return true;
  }
  /// What it has said so far.
  [[nodiscard]] const std::string& output() {
    std::array<char, 4096> chunk{};
    for (ssize_t got = 0; (got = ::read(output_, chunk.data(), chunk.size())) > 0;)
      text_.append(chunk.data(), static_cast<std::size_t>(got));
    return text_;
  }
  [[nodiscard]] bool said(const std::string& text) { return output().find(text) != std::string::npos; }

 private:
  pid_t pid_ = -1;
  int output_ = -1;
  std::string text_;
};

/// Runs a shell command and returns what it printed; it must succeed.
inline std::string shell(const std::string& command) {
  FILE* const pipe = ::popen((command + " 2>&1").c_str(), "re");
  REQUIRE(pipe != nullptr);
  std::string text;
  std::array<char, 4096> chunk{};
  for (std::size_t got = 0; (got = std::fread(chunk.data(), 1, chunk.size(), pipe)) > 0;)
    text.append(chunk.data(), got);
  const int status = ::pclose(pipe);
  INFO(command << ": " << text);
  REQUIRE(status == 0);
  return text;
}

}  // namespace rbt::test
