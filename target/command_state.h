#pragma once
// The states of one command slot and the ways between them.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace rbt::target {

enum class CommandState : std::uint8_t {
  free,                  ///< Nobody's; in the connection's free list. A received capsule wakes it.
  decoding,              ///< The capsule is being read and judged; never waits.
  awaiting_second,       ///< The first half of a fused pair. Woken by the next command of its queue, or its end.
  acquiring,             ///< Memory is being found. Woken by the store, or by the buffer pool.
  awaiting_read_credit,  ///< Not all RDMA READs are posted yet. Woken by completions of its connection.
  pulling,               ///< All RDMA READs are posted. Woken by their completion.
  executing,             ///< The store or the controller carries it out. Woken by the store.
  held,  ///< An Asynchronous Event Request without an event, woken by Abort or a controller reset; an Abort of a command on
         ///< another reactor, woken by its message.
  awaiting_send_credit,  ///< Data or response are not all posted yet. Woken by completions of its connection.
  responding,            ///< The response is posted; the host may reuse the CID. Woken by the SEND's completion.
  abandoned,             ///< The connection is gone. Woken by the store if it still owes an answer.
};
inline constexpr std::size_t kCommandStates = 11;

[[nodiscard]] constexpr std::string_view name(CommandState state) noexcept {
  switch (state) {
    case CommandState::free: return "free";
    case CommandState::decoding: return "decoding";
    case CommandState::awaiting_second: return "awaiting its second half";
    case CommandState::acquiring: return "acquiring";
    case CommandState::awaiting_read_credit: return "awaiting read credit";
    case CommandState::pulling: return "pulling";
    case CommandState::executing: return "executing";
    case CommandState::held: return "held";
    case CommandState::awaiting_send_credit: return "awaiting send credit";
    case CommandState::responding: return "responding";
    case CommandState::abandoned: return "abandoned";
  }
  return "?";
}

namespace detail {
using enum CommandState;
inline constexpr std::pair<CommandState, CommandState> kCommandTransitions[] = {
    {free, decoding},
    {decoding, acquiring},
    {decoding, awaiting_second},
    {awaiting_second, awaiting_send_credit},
    {decoding, awaiting_send_credit},  // refused
    {acquiring, awaiting_read_credit},
    {acquiring, executing},
    {acquiring, awaiting_send_credit},  // the store could not
    {awaiting_read_credit, pulling},
    {awaiting_read_credit, awaiting_send_credit},  // aborted
    {pulling, awaiting_read_credit},               // the data of a pair's second half
    {pulling, executing},
    {executing, held},
    {executing, awaiting_send_credit},
    {held, awaiting_send_credit},
    {awaiting_send_credit, responding},
    {responding, free},
    // the connection is gone
    {decoding, abandoned},
    {awaiting_second, abandoned},
    {acquiring, abandoned},
    {awaiting_read_credit, abandoned},
    {pulling, abandoned},
    {executing, abandoned},
    {held, abandoned},
    {awaiting_send_credit, abandoned},
    {responding, abandoned},
    {abandoned, free},
};

using TransitionTable = std::array<std::array<bool, kCommandStates>, kCommandStates>;
constexpr TransitionTable build_command_transitions() noexcept {
  TransitionTable table{};
  for (const auto& [from, to] : kCommandTransitions)
    table[static_cast<std::size_t>(from)][static_cast<std::size_t>(to)] = true;
  return table;
}
inline constexpr TransitionTable kCommandTransitionTable = build_command_transitions();
}  // namespace detail

[[nodiscard]] constexpr bool may_follow(CommandState from, CommandState to) noexcept {
  return detail::kCommandTransitionTable[static_cast<std::size_t>(from)][static_cast<std::size_t>(to)];
}

}  // namespace rbt::target
