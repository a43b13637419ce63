#pragma once
// Having several reactors' threads do something, and waiting for it.

#include <cstddef>
#include <functional>
#include <span>

#include "transport/reactor/reactor.h"

namespace rbt::transport {

/// Runs what(i) in a task of reactors[i], of all of them at once, and of `own` right here. Turns `own` until all have, even if it was
/// told to stop. On the thread that turns `own`, not from within its turns. Each is turned by some thread, and what() ends in
/// bounded time; it may turn the reactor that it runs on.
void run_on(Reactor& own, std::span<Reactor* const> reactors, const std::function<void(std::size_t)>& what);

}  // namespace rbt::transport
