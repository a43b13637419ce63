#pragma once
// A store that does nothing until it is told to: what is asked of it waits at a gate. For tests of what happens
// meanwhile.

#include <deque>
#include <functional>
#include <memory>

#include "target/store/store.h"

namespace rbt::test {

/// What waits, and the hand on the gate. One thread. Outlives its store.
class Gate {
 public:
  [[nodiscard]] std::size_t waiting() const noexcept { return waiting_.size(); }
  bool open = false;  ///< true: nothing waits
  /// Answers that replace the store's own: for one operation each.
  std::deque<target::StoreStatus> answers;

  /// The oldest one goes on.
  void let_one_through();
  void let_all_through();

  target::Progress ask(std::function<target::Progress()> operation, target::StoreRequest& request);

 private:
  struct Waiting {
    std::function<target::Progress()> operation;
    target::StoreRequest* request;
  };
  std::deque<Waiting> waiting_;
};

/// `inner` (which answers at once) behind `gate`.
[[nodiscard]] std::unique_ptr<target::Store> make_gated_store(std::unique_ptr<target::Store> inner, Gate& gate);

}  // namespace rbt::test
