#include "common/histogram.h"

#include <catch2/catch.hpp>

using namespace rbt;
using namespace std::chrono_literals;

TEST_CASE("A percentile is within half a percent of the exact value, at every scale") {
  for (const Duration unit : {Duration(1ns), Duration(1us), Duration(1ms), Duration(1s)}) {
    Histogram histogram;
    for (int i = 1; i <= 1000; ++i)
      histogram.record(unit * i);
    const double us = std::chrono::duration<double, std::micro>(unit).count();
    CHECK(histogram.quantile_us(0.5) == Approx(500 * us).epsilon(0.005));
    CHECK(histogram.quantile_us(0.99) == Approx(990 * us).epsilon(0.005));
    CHECK(histogram.quantile_us(0.999) == Approx(999 * us).epsilon(0.005));
    CHECK(histogram.max_us() == Approx(1000 * us));
    CHECK(histogram.mean_us() == Approx(500.5 * us));
  }
}

TEST_CASE("Histograms of several jobs add up") {
  Histogram a, b;
  a.record(1us);
  b.record(3us);
  a.add(b);
  CHECK(a.count() == 2);
  CHECK(a.mean_us() == Approx(2));
  CHECK(a.max_us() == Approx(3));
}

TEST_CASE("Nothing recorded and things beyond the scale do no harm") {
  Histogram histogram;
  CHECK(histogram.quantile_us(0.5) == 0);
  CHECK(histogram.mean_us() == 0);
  histogram.record(Duration(-5));
  histogram.record(std::chrono::hours(24 * 365));
  CHECK(histogram.count() == 2);
  CHECK(histogram.quantile_us(1.0) > 0);
}

TEST_CASE("A coarse histogram is within six percent") {
  CoarseHistogram histogram;
  for (int i = 1; i <= 1000; ++i)
    histogram.record(Duration(1us) * i);
  for (const double quantile : {0.1, 0.5, 0.9, 0.99, 0.999}) {
    CHECK(histogram.quantile_us(quantile) <= 1000 * quantile);
    CHECK(histogram.quantile_us(quantile) >= 1000 * quantile * 0.94);
  }
  CHECK(histogram.max_us() == Approx(1000));
}
