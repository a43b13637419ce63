#pragma once
// What the parts of a simulated world share: time, chance, keys, faults, machines, reactors.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/random.h"
#include "transport/sim/agenda.h"
#include "transport/sim/memory.h"
#include "transport/sim/network.h"
#include "transport/sim/trace.h"

namespace rbt::transport::sim {

class Machine;
class Group;

class World {
 public:
  World(const NetworkOptions& options, Logger& logger);
  ~World();

  [[nodiscard]] Agenda& agenda() noexcept { return agenda_; }
  [[nodiscard]] Instant now() const noexcept { return agenda_.now(); }
  [[nodiscard]] KeyTable& keys() noexcept { return keys_; }
  [[nodiscard]] Random& chance() noexcept { return chance_; }
  [[nodiscard]] Random& test_random() noexcept { return test_random_; }
  [[nodiscard]] Trace& trace() noexcept { return trace_; }
  void note(What what, std::uint64_t a = 0, std::uint64_t b = 0, std::uint64_t c = 0) noexcept {
    trace_.add(now(), what, a, b, c);
  }
  [[nodiscard]] Logger& logger() noexcept { return logger_; }
  [[nodiscard]] const NetworkOptions& options() const noexcept { return options_; }
  [[nodiscard]] Faults& faults() noexcept { return faults_; }
  [[nodiscard]] const FaultPlan& plan() const noexcept { return faults_.plan_; }

  /// Counts an operation; true if it is to fail, by order or by chance.
  [[nodiscard]] bool fails(Operation kind, std::string_view machine);

  /// The machine of this name, made if there is none.
  Machine& machine(std::string_view name, std::uint32_t devices);
  /// Null if there is none of this name.
  [[nodiscard]] Machine* find_machine(std::string_view name) const noexcept;
  [[nodiscard]] const std::vector<std::unique_ptr<Machine>>& machines() const noexcept { return machines_; }

  /// The way from `from` to `to`.
  [[nodiscard]] const Link& link(const Machine& from, const Machine& to) const noexcept;
  void set_link(const Machine& a, const Machine& b, const Link& link) { links_[pair(a, b)] = link; }
  /// False: whatever is sent now is lost.
  [[nodiscard]] bool reachable(const Machine& from, const Machine& to) const noexcept;
  void set_partition(const Machine& a, const Machine& b, bool apart);
  void heal_links() noexcept;
  /// Latency of one message, jitter included.
  [[nodiscard]] Duration travel(const Machine& from, const Machine& to) noexcept;

  // Reactors.
  /// `group` null: added by the test itself.
  void join(Reactor& reactor, Group* group);
  void leave(Reactor& reactor, Group* group) noexcept;
  /// Turns everybody who is not turning already. True if anybody did anything.
  bool turn_all();
  /// Lets events happen until a poll group has something to deliver or `limit` would be passed. False: no event did.
  bool deliver_events(std::optional<Instant> limit);
  /// The earliest timer of any reactor that is turned.
  [[nodiscard]] std::optional<Instant> next_timer() const noexcept;
  void ready() noexcept { something_ready_ = true; }  ///< a poll group has something to deliver
  std::uint64_t violations = 0;
  std::uint64_t deadlocks = 0;

 private:
  struct Participant {
    Reactor* reactor = nullptr;
    std::vector<Group*> groups;  // null: added by the test itself
  };
  using Pair = std::pair<std::uint32_t, std::uint32_t>;  // machines' numbers, the smaller first
  [[nodiscard]] static Pair pair(const Machine& a, const Machine& b) noexcept;
  [[nodiscard]] Participant* find(const Reactor& reactor) noexcept;
  [[nodiscard]] static bool turns(const Participant& participant) noexcept;

  NetworkOptions options_;
  Logger& logger_;
  Random chance_;
  Random test_random_;
  Agenda agenda_;
  KeyTable keys_;
  Trace trace_;
  Faults faults_;
  std::vector<std::unique_ptr<Machine>> machines_;
  std::map<Pair, Link> links_;
  std::set<Pair> partitions_;
  std::vector<Participant> participants_;
  bool something_ready_ = false;
};

}  // namespace rbt::transport::sim
