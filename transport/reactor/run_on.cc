#include "transport/reactor/run_on.h"

#include <thread>

namespace rbt::transport {

void run_on(Reactor& own, std::span<Reactor* const> reactors, const std::function<void(std::size_t)>& what) {
  std::size_t left = 0;  // this thread's
  for (std::size_t i = 0; i < reactors.size(); ++i) {
    if (reactors[i] == &own) continue;
    ++left;
    reactors[i]->post([&own, &left, &what, i] {
      what(i);
      own.post([&left] { --left; });
    });
  }
  for (std::size_t i = 0; i < reactors.size(); ++i)
    if (reactors[i] == &own) what(i);
  const auto done = [&left] { return left == 0; };
  if (own.run_until(done, Instant::max())) return;
  while (!done())
    if (!own.turn()) std::this_thread::yield();
}

}  // namespace rbt::transport
