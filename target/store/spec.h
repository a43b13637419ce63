#pragma once
// From "ram:size=1GiB" to a store. The words are explained in docs/stores.md, the grammar in spec_text.h.

#include <memory>
#include <string_view>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "common/result.h"
#include "target/store/store.h"

namespace rbt::transport::coherence {
class Monitor;  // transport/coherence/monitor.h
}

namespace rbt::target {

class IoEngineFactory;  // io_engine.h
class SharedArena;      // shared_arena.h

/// What stores need from their surroundings. All outlive the store, except `random`, which is used by make_store() only.
struct StoreEnvironment {
  const Clock& clock;
  Random& random;  ///< identities
  Logger& logger;
  IoEngineFactory* io = nullptr;  ///< how files are read and written; null: io_uring, or threads where it is refused
  /// Watches what map: serves without a copy; null: what needs to be watched is copied.
  transport::coherence::Monitor* monitor = nullptr;
  /// Where small `ram` stores, and all `null` stores, share memory; null: each has its own, and a descriptor or two.
  SharedArena* arena = nullptr;
  /// The store is opened to be asked explain() and closed again: nothing is done to it that cannot be undone (seals).
  bool explain_only = false;
};

/// What make_store() understands, one line each, for --help.
[[nodiscard]] std::string_view store_spec_help() noexcept;

/// Opens the store that `spec` describes. Slow path. Errors name the spec; a spec that cannot be understood is
/// invalid_argument, in three lines of which the last points at the character.
[[nodiscard]] Result<std::unique_ptr<Store>> make_store(std::string_view spec, const StoreEnvironment& environment);

}  // namespace rbt::target
