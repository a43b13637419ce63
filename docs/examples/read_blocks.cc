// OVERWRITES a block of a remote disk, reads it back and prints it: all that a program needs to use librbt-initiator.
//   read_blocks nvme+shm:///NQN/NSID?socket=PATH [LBA]        (or nvme+rdma://HOST/NQN/NSID)
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "initiator/initiator.h"
#include "transport/shm/fabric.h"
#include "transport/verbs/fabric.h"

using namespace rbt;

static int fail(const Error& error) {
  std::fprintf(stderr, "read_blocks: %s\n", error.message().c_str());
  return 1;
}

static bool carried_out(initiator::QueuePair& queue, initiator::Request& request, initiator::Submitted submitted) {
  if (submitted == initiator::Submitted::accepted) (void)queue.wait(request, Instant::max());
  if (request.outcome == initiator::Outcome::success) return true;
  std::fprintf(stderr, "read_blocks: %s: %s (%s)\n", name(request.operation).data(), name(request.outcome).data(),
               queue.failure() ? queue.failure()->message().c_str() : nvme::describe(request.status).c_str());
  return false;
}

int main(int argc, char** argv) {
  if (argc < 2) return fail(Error(ErrorKind::invalid_argument, "usage: read_blocks URI [LBA]"));
  const auto uri = Uri::parse(argv[1]);
  if (!uri) return fail(uri.error());
  const Lba lba(argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 0);

  // What a session lives in: chosen here, passed down, outliving everything below.
  SystemClock clock;
  const auto logger = make_stderr_logger(LogLevel::warning);
  Random random = Random::from_entropy();
  std::unique_ptr<transport::Fabric> fabric;
  if (uri->scheme == Uri::Scheme::shm) {
    auto opened = transport::shm::Fabric::open({}, random);
    if (!opened) return fail(opened.error());
    fabric = std::move(*opened);
  } else {
    auto opened = transport::verbs::Fabric::open(*logger);
    if (!opened) return fail(opened.error());
    fabric = std::move(*opened);
  }

  // One session per target; its thread keeps it alive. One queue pair per thread that does I/O, on that thread's reactor.
  auto session = initiator::Session::connect({*fabric, clock, *logger, random}, *uri, {});
  if (!session) return fail(session.error());
  const auto disk = (*session)->find(uri->nsid);
  if (!disk) return fail(disk.error());
  auto reactor = transport::Reactor::create(clock, *logger);
  if (!reactor) return fail(reactor.error());
  auto queue = (*session)->open_queue_pair(**reactor, {.depth = 8, .buffers = Bytes(2 * kMiB)});
  if (!queue) return fail(queue.error());

  // Buffers of the queue pair are reached by the target directly; any other memory would do as well, with a copy.
  const initiator::Namespace& space = **disk;
  const std::size_t size = space.block_size();
  const auto buffer = (*queue)->buffers()->allocate(size);
  const iovec piece{buffer.data(), size};
  initiator::Request request;
  std::snprintf(reinterpret_cast<char*>(buffer.data()), size, "Hello, block %llu of %llu\n",
                static_cast<unsigned long long>(lba.value()), static_cast<unsigned long long>(space.blocks.value()));
  if (!carried_out(**queue, request, (*queue)->write(request, space, lba, {&piece, 1}, nvme::ForceUnitAccess::yes)))
    return 1;
  std::memset(buffer.data(), 0, size);
  if (!carried_out(**queue, request, (*queue)->read(request, space, lba, {&piece, 1}))) return 1;
  std::printf("%s", reinterpret_cast<const char*>(buffer.data()));
  (*queue)->buffers()->free(buffer);
  return 0;
}
