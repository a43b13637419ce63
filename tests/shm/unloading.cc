// For LD_PRELOAD: lets the threads that there still are when a library has been unloaded run into the hole, and says how many have not
// ended then. nbdkit's own take a moment to.

#include <dirent.h>
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <thread>

extern "C" int dlclose(void* handle) noexcept {
  const auto real = reinterpret_cast<int (*)(void*)>(::dlsym(RTLD_NEXT, "dlclose"));
  const int result = real(handle);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  int threads = -2;  // "." and ".."
  if (DIR* const tasks = ::opendir("/proc/self/task"); tasks != nullptr) {
    while (::readdir(tasks) != nullptr)
      ++threads;
    ::closedir(tasks);
  }
  std::fprintf(stderr, "threads when unloaded: %d\n", threads);
  return result;
}
