#include "tools/rbt-connect/worker.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

#include "common/quiet_thread.h"

namespace rbt::tools {

struct Worker::Shared {
  explicit Shared(transport::Reactor& whose) noexcept : reactor(whose) {}
  static void serve(const std::shared_ptr<Shared>& shared);

  struct Job {
    std::function<void()> call;
    std::function<void()> done;
  };
  transport::Reactor& reactor;
  bool heard = true;  // the reactor's thread's: somebody wants to know
  std::mutex mutex;   // guards what follows
  std::condition_variable changed;
  std::deque<Job> jobs;
  bool over = false;
};

void Worker::Shared::serve(const std::shared_ptr<Shared>& shared) {
  while (true) {
    std::unique_lock lock(shared->mutex);
    shared->changed.wait(lock, [&] { return shared->over || !shared->jobs.empty(); });
    if (shared->over) return;
    Job job = std::move(shared->jobs.front());
    shared->jobs.pop_front();
    lock.unlock();
    job.call();
    shared->reactor.post([shared, done = std::move(job.done)] {
      if (shared->heard) done();
    });
  }
}

Result<std::unique_ptr<Worker>> Worker::create(transport::Reactor& reactor) {
  std::unique_ptr<Worker> worker(new Worker(std::make_shared<Shared>(reactor)));
  auto thread = start_quiet_thread([shared = worker->shared_] { Shared::serve(shared); });
  if (!thread) return failure(std::move(thread.error()).within("for files"));
  worker->thread_ = std::move(*thread);
  return worker;
}

Worker::~Worker() {
  if (!thread_.joinable()) return;
  shared_->heard = false;
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->over = true;
  }
  shared_->changed.notify_one();
  thread_.join();
}

void Worker::start(std::function<void()> call, std::function<void()> done) {
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->jobs.push_back({std::move(call), std::move(done)});
  }
  shared_->changed.notify_one();
}

}  // namespace rbt::tools
