// What a reactor does when the reservations of a namespace have changed (reservation/reservations.h), and for who formats one:
// commands under way are stopped, or waited for.

#include <algorithm>
#include <utility>

#include "target/admin/admin.h"
#include "target/admin/format.h"
#include "target/core.h"
#include "target/reactor_context.h"
#include "target/reservation/reservations.h"

namespace rbt::target {

namespace {

// Commands that cannot be stopped take as long as their store: who looks more often learns it no sooner than a host can tell.
constexpr Duration kSweepStep = std::chrono::milliseconds(2);

bool among(const std::vector<nvme::HostId>& hosts, const nvme::HostId& host) noexcept {
  return std::find(hosts.begin(), hosts.end(), host) != hosts.end();
}

}  // namespace

std::function<void(nvme::Status)> ReactorContext::later_answer(const Command& command) {
  return
      [this, id = command.connection().id(), slot = command.index(), ticket = command.ticket()](nvme::Status status) {
        post([this, id, slot, ticket, status] {
          const auto found = connections_.find(id);
          if (found == connections_.end() || found->second->ended()) return;
          Command& held = found->second->commands()[slot];
          if (held.ticket() == ticket && held.state() == CommandState::held) held.complete_held(status, 0);
        });
      };
}

void ReactorContext::hear(const std::shared_ptr<ReservationNews>& news) {
  note_reservation(*news);
  std::vector<Sweep::Left> left;
  if (ServedNamespace* const ns = find(news->subsystem, news->nsid, news->opening)) {
    ns->set_reservation(news->view);
    left = stop_commands(*news, *ns);
  }
  await_end(std::move(left), [news] { news->arrive(); });
}

void ReactorContext::when_quiet(const Namespace& ns, std::function<void()> done) {
  std::vector<Sweep::Left> left;
  for (const auto& [id, connection] : connections_)
    for (const Command& command : connection->commands())
      if (command.held() != nullptr && &command.held()->shared() == &ns && command.touches_blocks())
        left.push_back({id, command.index(), command.ticket()});
  await_end(std::move(left), std::move(done));
}

void ReactorContext::await_end(std::vector<Sweep::Left> left, std::function<void()> done) {
  if (left.empty()) return done();
  core_.gate.enter();
  sweeps_.push_back({std::move(left), std::move(done)});
  if (!sweep_timer_.armed()) sweep_timer_.arm(reactor_.clock().now() + kSweepStep);
}

void ReactorContext::note_reservation(const ReservationNews& news) {
  if (news.notices.empty()) return;
  for (const auto& [id, connection] : connections_) {  // sending an event changes no table
    Controller* const controller = connection->controller();
    if (controller == nullptr || connection->terms().qid != Qid(0) || connection->ended() ||
        &controller->subsystem() != &news.subsystem)
      continue;
    for (const auto& [host, notice] : news.notices)
      if (host == controller->identity().host_id) controller->reservation_notices().note(notice, news.nsid);
    send_due_events(*controller);
  }
}

// Returns what has to be waited for. What comes from now on is judged by the new view.
std::vector<ReactorContext::Sweep::Left> ReactorContext::stop_commands(const ReservationNews& news,
                                                                       const ServedNamespace& ns) {
  std::vector<Sweep::Left> left;
  if (news.aborted.empty()) return left;
  for (const auto& [id, connection] : connections_) {  // answering changes no table
    const Controller* const controller = connection->controller();
    if (controller == nullptr || !among(news.aborted, controller->identity().host_id)) continue;
    for (Command& command : connection->commands()) {
      if (command.held() != &ns) continue;
      const std::uint32_t ticket = command.ticket();
      if (!connection->ended()) static_cast<void>(command.abort(nvme::StatusCode::preempted_and_aborted));
      // Its end may have let the next one into the same slot: that one was judged by the new view.
      if (command.ticket() == ticket && command.touches_blocks()) left.push_back({id, command.index(), ticket});
    }
  }
  return left;
}

void ReactorContext::sweep_step() {
  const auto is_over = [this](const Sweep::Left& each) {
    const auto found = connections_.find(each.connection);
    if (found == connections_.end()) return true;
    const Command& command = found->second->commands()[each.slot];
    return command.ticket() != each.ticket || !command.touches_blocks();
  };
  for (Sweep& sweep : sweeps_)
    std::erase_if(sweep.left, is_over);
  const auto done =
      std::stable_partition(sweeps_.begin(), sweeps_.end(), [](const Sweep& each) { return !each.left.empty(); });
  std::vector<Sweep> ended(std::make_move_iterator(done), std::make_move_iterator(sweeps_.end()));
  sweeps_.erase(done, sweeps_.end());
  if (!sweeps_.empty()) sweep_timer_.arm(reactor_.clock().now() + kSweepStep);
  for (const Sweep& each : ended) {
    each.done();
    core_.gate.leave();
  }
}

void ReactorContext::begin_format(std::unique_ptr<FormatJob> job) {
  formats_.push_back(std::move(job));
  formats_.back()->start();
}

void ReactorContext::end_format(const FormatJob& job) {
  post([this, &job] { std::erase_if(formats_, [&](const auto& each) { return each.get() == &job; }); });
}

}  // namespace rbt::target
