/** Where the picture of a CVLAN puts its nodes: unit coordinates, the centre kept free. Pure, the same every time. */

export interface Place {
  x: number;
  y: number;
}

/** Up to here on one ring, with names and lines; above, a disc of dots. */
export const RING_MAX = 24;
/** The picture's own bound; the table has them all. */
export const PICTURE_MAX = 600;

/** How much of the radius the centre's figure takes. */
export const HUB = 0.44;
const GOLDEN_ANGLE = Math.PI * (3 - Math.sqrt(5));

function polar(radius: number, angle: number): Place {
  return { x: radius * Math.sin(angle), y: -radius * Math.cos(angle) };
}

/** One ring, clockwise from the top; many nodes as a sunflower (Vogel 1979), whose density is even at any number. */
export function places(total: number): Place[] {
  if (total <= RING_MAX) return Array.from({ length: total }, (_, at) => polar(1, (2 * Math.PI * at) / total));
  return Array.from({ length: total }, (_, at) =>
    polar(Math.sqrt(HUB ** 2 + (1 - HUB ** 2) * ((at + 0.5) / total)), at * GOLDEN_ANGLE),
  );
}

/** Radius of a dot, in units, so that neighbours do not touch. */
export const dotRadius = (total: number) => (total <= RING_MAX ? 0.075 : Math.min(0.06, 0.72 / Math.sqrt(total)));
