// A command is stopped before its time (Base 2.0, 5.1 and 8.19.6): if it has changed nothing yet.

#include <utility>

#include "target/command.h"
#include "target/connection.h"

namespace rbt::target {

using nvme::StatusCode;

bool Command::abort(StatusCode why) {
  switch (state_) {
    case CommandState::awaiting_second: {
      for (Command& each : connection_->commands())
        if (each.first_ == this) return each.abort(why);  // the whole pair
      static_cast<void>(connection_->take_first());
      connection_->note_failed_first();
      complete_first(why);
      return true;
    }
    case CommandState::acquiring:
      stop_ = why;
      if (store_call_ != StoreCall::none) return true;  // its memory or its turn comes, and goes back
      pool().cancel(*this);
      return stopped();
    case CommandState::awaiting_read_credit:
      stop_ = why;
      if (posted_reads_ > 0) return true;
      connection_->cancel_read_credit(*this);
      return stopped();
    case CommandState::pulling: stop_ = why; return true;
    case CommandState::executing:
      // A pair that waits for its turn has not begun; of everything else some may be done.
      if (first_ == nullptr || (store_call_ != StoreCall::turn && store_call_ != StoreCall::turns)) return false;
      stop_ = why;
      return true;
    case CommandState::free:
    case CommandState::decoding:
    case CommandState::held:  // of events, which know them
    case CommandState::awaiting_send_credit:
    case CommandState::responding:
    case CommandState::abandoned: break;
  }
  return false;
}

/// True: it has been aborted, and is answered so.
bool Command::stopped() {
  if (stop_ == StatusCode::success) return false;
  status_ = std::exchange(stop_, StatusCode::success);
  respond();
  return true;
}

bool Command::touches_blocks() const noexcept {
  switch (state_) {
    case CommandState::awaiting_read_credit:
    case CommandState::pulling: return true;  // its data may be on its way straight there
    case CommandState::acquiring:
    case CommandState::executing: return stop_ == StatusCode::success;
    case CommandState::abandoned: return store_call_ != StoreCall::none;
    case CommandState::free:
    case CommandState::decoding:
    case CommandState::awaiting_second:
    case CommandState::held:
    case CommandState::awaiting_send_credit:
    case CommandState::responding: break;
  }
  return false;
}

}  // namespace rbt::target
