#include "tools/nbdkit-plugin/shutdown_watch.h"

#include <utility>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

namespace rbt::tools {

ShutdownWatch::ShutdownWatch(std::function<void()> on_shutdown)
    : on_shutdown_(std::move(on_shutdown)), thread_([this] { run(); }) {}

ShutdownWatch::~ShutdownWatch() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void ShutdownWatch::watch(bool requests_may_wait) {
  {
    const std::lock_guard lock(mutex_);
    watching_ = requests_may_wait;
  }
  changed_.notify_one();
}

void ShutdownWatch::run() {
  static constexpr unsigned kSliceNs = 500'000'000;  // how much longer it sleeps than it has to: not when nbdkit ends
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return watching_ || stopping_; });
    if (stopping_) return;
    lock.unlock();
    const bool ends = nbdkit_nanosleep(0, kSliceNs) != 0;
    if (ends) return on_shutdown_();
    lock.lock();
  }
}

}  // namespace rbt::tools
