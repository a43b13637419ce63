#pragma once
// A thread that gets no signals: those are for the program's own threads.

#include <pthread.h>

#include <cerrno>
#include <csignal>
#include <system_error>
#include <thread>
#include <utility>

#include "common/result.h"

namespace rbt {

/// Error: the limit of processes.
template <typename Body>
[[nodiscard]] Result<std::thread> start_quiet_thread(Body body) {
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);  // a thread starts with the mask of the one that starts it
  int error = 0;
  std::thread thread;
  try {
    thread = std::thread(std::move(body));
  } catch (const std::system_error& refused) {
    error = refused.code().value();
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0) return errno_failure(error, "starting a thread", "raise the limit of processes (`ulimit -u`)");
  return thread;
}

}  // namespace rbt
