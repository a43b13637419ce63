#pragma once
// What serve() is made of. Belongs to the thread that turns the reactor, which it owns.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "initiator/present/device.h"
#include "initiator/volume.h"
#include "tools/rbt-connect/map/control.h"
#include "tools/rbt-connect/map/presenters.h"
#include "tools/rbt-connect/map/process.h"
#include "tools/rbt-connect/map/status.h"
#include "tools/rbt-connect/map/surroundings.h"
#include "transport/reactor/reactor.h"

namespace rbt::tools::map {

enum class Force : bool { no, yes };

inline constexpr Duration kOrderly = std::chrono::seconds(10);  // for a device to be removed
inline constexpr Duration kLong = std::chrono::hours(1);        // until something happens

class Process {
 public:
  Process(const World& world, const RunFolder& folder, NameLock lock, const Job& job, Starter& starter)
      : world_(world), folder_(folder), lock_(std::move(lock)), job_(job), starter_(starter) {}
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  Result<int> run();

 private:
  // ---- begin
  Result<void> begin();
  Result<void> watch_signals();
  Result<void> open(const Presenter& presenter);
  Result<void> open_volume(const Presenter& presenter, const initiator::Environment& environment);
  Result<void> make_device();
  Result<void> nobody_else_has_it() const;
  Result<void> tell();
  // ---- while it is there
  void on_state(initiator::VolumeState state, const Error* why);
  void on_change(initiator::DiskChange change);
  std::optional<Json> on_request(ControlServer::Client client, const Json& request);
  void on_signal();
  void keep_watchdog();
  void resize();
  [[nodiscard]] Standing standing() const;
  [[nodiscard]] bool called() const { return stop_ > stopped_ || unmap_ || resized_ || device_->ended() != nullptr; }
  // ---- end
  std::vector<std::string> users();
  Result<void> flush();
  Result<void> take_away(Force force);
  std::optional<int> stop();
  std::optional<int> leave(const std::string& why);
  Result<int> ended(Error why);
  void unmap();
  void forget() noexcept;
  void announce() const;
  [[nodiscard]] Instant in(Duration time) const { return world_.clock.now() + time; }

  struct Unmap {
    ControlServer::Client client = 0;
    Force force = Force::no;
  };

  const World& world_;
  const RunFolder& folder_;
  NameLock lock_;
  const Job& job_;
  Starter& starter_;
  State state_;
  ErrorsElsewhere errors_;
  const Presenter* presenter_ = nullptr;
  std::unique_ptr<transport::Reactor> reactor_;
  int signals_ = -1;
  std::unique_ptr<initiator::Volume> volume_;
  std::unique_ptr<initiator::Device> device_;
  std::unique_ptr<ControlServer> control_;
  std::optional<transport::Timer> watchdog_;
  std::optional<transport::Timer> last_resort_;
  Duration watchdog_period_{};
  bool opening_ = true;
  int stop_ = 0;     // how many signals said so
  int stopped_ = 0;  // how many of them have been heard
  bool resized_ = false;
  std::optional<Unmap> unmap_;
  initiator::Request flush_{};
  bool over_ = false;
  std::string reason_;
  std::string note_;
  Instant begun_{};
  Instant changed_{};
};

}  // namespace rbt::tools::map
