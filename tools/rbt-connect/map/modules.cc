#include "tools/rbt-connect/map/modules.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "tools/rbt-connect/doctor/machine.h"
#include "tools/rbt-connect/map/presenters.h"

namespace rbt::tools::map {

namespace {

void modprobe(const char* module) {
  std::array<std::string, 3> words{"modprobe", "-q", module};
  std::array<char*, 4> raw{words[0].data(), words[1].data(), words[2].data(), nullptr};
  std::array<char*, 2> environment{nullptr, nullptr};
  std::string path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
  environment[0] = path.data();
  posix_spawn_file_actions_t actions{};
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDWR, 0);
  ::posix_spawn_file_actions_adddup2(&actions, STDIN_FILENO, STDOUT_FILENO);  // standard output is the device's path
  ::posix_spawn_file_actions_adddup2(&actions, STDIN_FILENO, STDERR_FILENO);
  pid_t child = 0;
  const int error = ::posix_spawn(&child, "/sbin/modprobe", &actions, nullptr, raw.data(), environment.data());
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return;
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
}

}  // namespace

void load_modules(Via via) {
  for (const Presenter& each : presenters()) {
    if (via != Via::automatic && via != each.via) continue;
    const doctor::Machine machine = doctor::this_machine();
    if (each.examine(machine).verdict == doctor::Verdict::good) return;
    for (const char* module : each.modules)
      if (doctor::find_module(machine, module) == doctor::Module::loadable) modprobe(module);
    if (each.examine(machine).verdict == doctor::Verdict::good) return;
  }
}

}  // namespace rbt::tools::map
