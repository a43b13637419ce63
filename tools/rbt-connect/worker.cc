#include "tools/rbt-connect/worker.h"

#include <pthread.h>
#include <signal.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <utility>

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
  // Signals are for the thread that expects them; a pipe that nobody reads any more is an error like others.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::error_code refused;
  try {
    worker->thread_ = std::thread([shared = worker->shared_] { Shared::serve(shared); });
  } catch (const std::system_error& error) {
    refused = error.code();
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (refused) return errno_failure(refused.value(), "starting a thread for files", "raise the limit (`ulimit -u`)");
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
