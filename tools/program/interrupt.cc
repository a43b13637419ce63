#include "tools/program/interrupt.h"

#include <array>
#include <atomic>

namespace rbt::tools {

namespace {

constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP};
// A signal handler can reach nothing else. Written by the handler, read by raised(); no other data hangs on it.
std::atomic<bool> interrupted{false};  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

void raise_flag(int /*signal*/) {
  interrupted.store(true, std::memory_order_relaxed);
}

}  // namespace

Interrupt::Interrupt() {
  struct sigaction action {};
  action.sa_handler = raise_flag;
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // the second one kills; no SA_RESTART: waits are interrupted
  for (const int signal : kSignals)
    ::sigaction(signal, &action, nullptr);
}

Interrupt::~Interrupt() {
  for (const int signal : kSignals)
    ::signal(signal, SIG_DFL);
}

bool Interrupt::raised() const noexcept {
  return interrupted.load(std::memory_order_relaxed);
}

}  // namespace rbt::tools
