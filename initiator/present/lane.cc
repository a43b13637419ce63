#include "initiator/present/lane.h"

#include <utility>

#include "common/check.h"

namespace rbt::initiator {

Result<std::unique_ptr<Lane>> Lane::open(Session& session, const Clock& clock, Logger& logger,
                                         const QueuePairOptions& options) {
  auto reactor = transport::Reactor::create(clock, logger);
  if (!reactor) return rbt::failure(std::move(reactor.error()));
  std::unique_ptr<Lane> lane(new Lane(std::move(*reactor)));
  auto queue = session.open_queue_pair(*lane->reactor_, options);
  if (!queue) return rbt::failure(std::move(queue.error()));
  lane->queue_ = std::move(*queue);
  lane->reactor_->add(*lane);
  return lane;
}

Lane::~Lane() {
  if (thread_.joinable()) {
    reactor_->stop();
    thread_.join();
  }
  check(first_ == nullptr && arrived_.load(std::memory_order_relaxed) == nullptr,
        "nobody waits for a job when its lane is destroyed");
  reactor_->remove(*this);
}

void Lane::start() {
  thread_ = std::thread([this] { reactor_->run(); });
}

void Lane::submit(Job& job) noexcept {
  job.request.context = &job;
  job.request.done = [](Request& request) {
    Job& mine = *static_cast<Job*>(request.context);
    mine.lane->finish(mine);
  };
  job.done_.store(0, std::memory_order_relaxed);
  Job* first = arrived_.load(std::memory_order_relaxed);
  do
    job.next_ = first;
  while (!arrived_.compare_exchange_weak(first, &job, std::memory_order_seq_cst, std::memory_order_relaxed));
  if (sleeping_.load(std::memory_order_seq_cst)) reactor_->wake();
}

void Lane::wait(Job& job) noexcept {
  job.done_.wait(0, std::memory_order_acquire);
}

// ---- the lane's thread

std::size_t Lane::poll() {
  if (arrived_.load(std::memory_order_relaxed) != nullptr) collect();
  std::size_t submitted = 0;
  while (first_ != nullptr && submit_first())
    ++submitted;
  return submitted;
}

// A lane whose queue pair is full may sleep: a completion wakes it.
bool Lane::arm() {
  sleeping_.store(true, std::memory_order_seq_cst);
  return arrived_.load(std::memory_order_seq_cst) == nullptr;
}

// What has arrived goes behind what waits, in the order of its coming.
void Lane::collect() noexcept {
  Job* newest = arrived_.exchange(nullptr, std::memory_order_acquire);
  Job* const last = newest;
  Job* in_order = nullptr;
  while (newest != nullptr) {
    Job* const older = newest->next_;
    newest->next_ = in_order;
    in_order = newest;
    newest = older;
  }
  if (in_order == nullptr) return;
  (first_ == nullptr ? first_ : last_->next_) = in_order;
  last_ = last;
}

// False: the queue pair is full, the job stays the first.
bool Lane::submit_first() {
  Job& job = *first_;
  Job* const next = job.next_;  // the job may be done, and another's, before this returns
  switch (queue_->submit(job.request)) {
    case Submitted::accepted: break;
    case Submitted::full: return false;
    case Submitted::refused: finish(job); break;
    case Submitted::dead:
      job.request.outcome = Outcome::disconnected;
      finish(job);
      break;
  }
  first_ = next;
  return true;
}

void Lane::finish(Job& job) {
  if (const Error* const why = queue_->failure(); why != nullptr && job.request.outcome != Outcome::success) {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) failure_ = *why;
  }
  job.done_.store(1, std::memory_order_release);
  job.done_.notify_one();
}

std::optional<Error> Lane::failure() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

}  // namespace rbt::initiator
