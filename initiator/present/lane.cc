#include "initiator/present/lane.h"

#include <utility>

#include "common/check.h"

namespace rbt::initiator {

Result<std::unique_ptr<Lane>> Lane::open(const Environment& environment, const Uri& uri, const VolumeOptions& options) {
  auto reactor = transport::Reactor::create(environment.clock, environment.logger);
  if (!reactor) return rbt::failure(std::move(reactor.error()));
  std::unique_ptr<Lane> lane(new Lane(std::move(*reactor), environment.random.fork()));
  auto volume =
      Volume::open({environment.fabric, environment.clock, environment.logger, lane->random_, environment.monitor},
                   {&uri, 1}, *lane->reactor_, options);
  if (!volume) return rbt::failure(std::move(volume.error()));
  lane->volume_ = std::move(*volume);
  lane->reactor_->add(*lane);
  return lane;
}

Lane::~Lane() {
  close();
  reactor_->remove(*this);
}

void Lane::start() {
  thread_ = std::thread([this] { run(); });
}

void Lane::give_up_when_lost() {
  End no = End::no;
  if (end_.compare_exchange_strong(no, End::when_lost, std::memory_order_acq_rel)) interrupt();
}

void Lane::close() {
  if (!thread_.joinable()) return;
  end_.store(End::now, std::memory_order_release);
  interrupt();
  thread_.join();
}

// An attempt to connect that is under way turns the reactor, for seconds: it is told to stop.
void Lane::interrupt() {
  reactor_->post([this] {
    const VolumeState state = volume_->state();
    if (state == VolumeState::lost || state == VolumeState::reconnecting || state == VolumeState::fenced)
      reactor_->stop();
  });
}

void Lane::submit(Job& job) {
  job.request.context = &job;
  job.request.done = [](Request& request) { finish(*static_cast<Job*>(request.context)); };
  job.done_.store(0, std::memory_order_relaxed);
  Job* first = arrived_.load(std::memory_order_relaxed);
  do {
    if (first == gone()) return refuse(job);
    job.next_ = first;
  } while (!arrived_.compare_exchange_weak(first, &job, std::memory_order_seq_cst, std::memory_order_relaxed));
  if (sleeping_.load(std::memory_order_seq_cst)) reactor_->wake();
}

void Lane::wait(Job& job) noexcept {
  job.done_.wait(0, std::memory_order_acquire);
}

// ---- the lane's thread

void Lane::run() {
  const std::function<bool()> look = [this] { return over() || volume_->progress_due(); };
  while (reactor_->run_until(look, Instant::max()) && !over())
    volume_->progress();
  volume_->close();
  for (Job* job = in_order(arrived_.exchange(gone(), std::memory_order_acq_rel)); job != nullptr;) {
    Job* const next = job->next_;
    refuse(*job);
    job = next;
  }
}

bool Lane::over() const noexcept {
  switch (end_.load(std::memory_order_acquire)) {
    case End::no: return false;
    case End::when_lost: return volume_->state() != VolumeState::live;
    case End::now: return true;
  }
  return true;
}

// What has arrived goes to the volume in the order of its coming. A request may be done, and another's, as soon as it is there.
std::size_t Lane::poll() {
  if (arrived_.load(std::memory_order_relaxed) == nullptr) return 0;
  std::size_t count = 0;
  for (Job* job = in_order(arrived_.exchange(nullptr, std::memory_order_acquire)); job != nullptr; ++count) {
    Job& mine = *std::exchange(job, job->next_);
    switch (volume_->submit(mine.request)) {
      case Submitted::accepted: break;
      case Submitted::refused: finish(mine); break;
      case Submitted::dead: refuse(mine); break;
      case Submitted::full: check(false, "there are no more jobs than the volume takes requests"); break;
    }
  }
  return count;
}

bool Lane::arm() {
  sleeping_.store(true, std::memory_order_seq_cst);
  return arrived_.load(std::memory_order_seq_cst) == nullptr;
}

Job* Lane::in_order(Job* newest) noexcept {
  Job* oldest = nullptr;
  while (newest != nullptr)
    newest = std::exchange(newest->next_, std::exchange(oldest, newest));
  return oldest;
}

void Lane::refuse(Job& job) {
  job.request.outcome = Outcome::disconnected;
  finish(job);
}

void Lane::finish(Job& job) {
  job.done_.store(1, std::memory_order_release);
  job.done_.notify_one();
}

}  // namespace rbt::initiator
