// A volume presented through ublk, for tests:
//
//   ublk_volume URI… [QUEUES [DEPTH [IO_MAX]]]  makes a device; several URIs are paths to one namespace
//   ublk_volume URI… --recover NUMBER           takes over the one that a dead process has left
//   ublk_volume --list                          "NUMBER STATE PID QUEUES DEPTH IO_MAX SIZE rbt|other" of each
//   ublk_volume --remove NUMBER [SECONDS]       stops and deletes it, in 10 s or so many
//
// A device's path is printed once it is there; then it is served until SIGTERM, which removes it, or SIGINT, which leaves it. The exit
// status is 0 only if nothing was left undone.
#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <charconv>
#include <csignal>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "initiator/present/ublk.h"
#include "initiator/volume.h"
#include "transport/verbs/fabric.h"

using namespace rbt;
using namespace std::chrono_literals;

namespace {

int complain(const Error& error) {
  fmt::print(stderr, "ublk_volume: {}\n", error.message());
  return 1;
}

std::uint32_t number(std::string_view text) {
  std::uint32_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

void say(const std::string& text) {
  fmt::print("{}\n", text);
  std::fflush(stdout);
}

int list(const Clock& clock) {
  auto all = initiator::list_ublk(clock.now() + 10s, clock);
  if (!all) return complain(all.error());
  for (const auto& each : *all)
    say(fmt::format("{} {} {} {} {} {} {} {}", each.number, name(each.state), each.pid, each.options.queues,
                    each.options.depth, each.options.io_max.value(), each.size.value(), each.ours ? "rbt" : "other"));
  return 0;
}

int remove(std::uint32_t number, Duration patience, const Clock& clock) {
  const Instant began = clock.now();
  auto gone = initiator::remove_ublk(number, clock.now() + patience, clock);
  if (!gone) return complain(gone.error());
  say(fmt::format("removed in {} ms", (clock.now() - began) / 1ms));
  return 0;
}

int serve(std::span<const Uri> uris, const initiator::DeviceOptions& options, const Clock& clock) {
  const Instant began = clock.now();
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigprocmask(SIG_BLOCK, &signals, nullptr);  // before there are threads
  const int signal_fd = ::signalfd(-1, &signals, SFD_CLOEXEC);
  int signal = 0;

  auto random = Random::from_entropy();
  const auto logger = make_stderr_logger(LogLevel::info);
  auto reactor = transport::Reactor::create(clock, *logger);
  if (!reactor) return complain(reactor.error());
  auto watched = (*reactor)->watch(signal_fd, EPOLLIN, [&](std::uint32_t) {
    signalfd_siginfo info{};
    if (::read(signal_fd, &info, sizeof info) == sizeof info) signal = static_cast<int>(info.ssi_signo);
  });
  if (!watched) return complain(watched.error());
  auto fabric = transport::verbs::Fabric::open(*logger);
  if (!fabric) return complain(fabric.error());
  auto volume = initiator::Volume::open({**fabric, clock, *logger, random}, uris, **reactor,
                                        {.queue = {.depth = 256, .buffers = initiator::ublk_buffers(options)},
                                         .lanes = initiator::ublk_lanes(options),
                                         .requests = initiator::ublk_requests(options),
                                         .attempt_timeout = 10s});
  if (!volume) return complain(volume.error());
  auto device = initiator::present_ublk(**volume, **reactor, options);
  if (!device) return complain(device.error());
  say(fmt::format("{} after {} ms: {} queues of {}, {} bytes at most", (*device)->path(), (clock.now() - began) / 1ms,
                  (*device)->options().queues, (*device)->options().depth, (*device)->options().io_max.value()));
  (void)(*volume)->run_until([&] { return signal != 0 || (*device)->ended() != nullptr; }, Instant::max());
  const auto statistics = (*volume)->statistics();
  say(fmt::format("losses {}, reissued {}, longest {} ms", statistics.losses, statistics.reissued,
                  statistics.longest_loss / 1ms));
  if (const Error* const why = (*device)->ended()) return complain(*why);
  if (signal == SIGINT) return 0;
  auto removed = (*device)->remove(clock.now() + 10s);
  return removed ? 0 : complain(removed.error());
}

}  // namespace

int main(int argc, char** argv) {
  const SystemClock clock;
  if (argc == 2 && std::string_view(argv[1]) == "--list") return list(clock);
  if (argc >= 3 && std::string_view(argv[1]) == "--remove")
    return remove(number(argv[2]), std::chrono::seconds(argc > 3 ? number(argv[3]) : 10), clock);
  std::vector<Uri> uris;
  int first = 1;  // argument behind the URIs
  for (; first < argc && std::string_view(argv[first]).starts_with("nvme+"); ++first) {
    auto uri = Uri::parse(argv[first]);
    if (!uri) return complain(uri.error());
    uris.push_back(std::move(*uri));
  }
  if (uris.empty()) return 2;
  const std::span<char*> rest(argv + first, static_cast<std::size_t>(argc - first));
  initiator::DeviceOptions options{.queues = 2};
  if (rest.size() == 2 && std::string_view(rest[0]) == "--recover") {
    auto left = initiator::find_ublk(number(rest[1]), clock.now() + 10s, clock);
    if (!left) return complain(left.error());
    options = left->options;
  } else {
    if (!rest.empty()) options.queues = number(rest[0]);
    if (rest.size() > 1) options.depth = number(rest[1]);
    if (rest.size() > 2) options.io_max = Bytes(number(rest[2]));
  }
  return serve(uris, options, clock);
}
